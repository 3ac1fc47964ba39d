import BatonRuntime
import Glibc

/// An IPv4 multicast group with a port, which several VMs share as if it were
/// an Ethernet segment (`-netdev dgram` with such an address as `remote`).
struct MulticastGroup {
    private let group: in_addr
    private let port: UInt16
    private let name: String

    /// - Returns: nil when it is any other address.
    init?(_ address: SocketAddress) {
        guard case .tcp(let host, let text) = address, let port = UInt16(text) else { return nil }
        var group = in_addr()
        guard inet_pton(AF_INET, host, &group) == 1, UInt32(bigEndian: group.s_addr) >> 28 == 0xe else { return nil }
        (self.group, self.port, name) = (group, port, address.name)
    }

    /// Makes a socket that hears the group. What it sends there comes back to
    /// this host too, as other VMs on it are to hear it.
    /// - Parameter interface: the address of the host's interface to use; nil
    ///   for the one that the host would take.
    /// - Returns: a non-blocking socket, owned by the caller.
    func join(interface: String?) throws(VMMError) -> Int32 {
        var local = in_addr()
        if let interface, inet_pton(AF_INET, interface, &local) != 1 {
            throw VMMError("local.host '\(interface)' is not the IPv4 address of an interface")
        }
        let kind = Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let number = socket(AF_INET, kind, 0)
        guard number >= 0 else { throw .system("can't create datagram socket") }
        let fd = OwnedFD(adopting: number)
        try set(fd.raw, SOL_SOCKET, SO_REUSEADDR, 1 as Int32, "can't set socket option SO_REUSEADDR")
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr = group
        let bound = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(fd.raw, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard bound == 0 else { throw .system("can't bind ip=\(name) to socket") }
        try set(
            fd.raw, Int32(IPPROTO_IP), IP_ADD_MEMBERSHIP, ip_mreq(imr_multiaddr: group, imr_interface: local),
            "can't add socket to multicast group \(name)")
        try set(fd.raw, Int32(IPPROTO_IP), IP_MULTICAST_LOOP, 1 as Int32, "can't force multicast message to loopback")
        if interface != nil {
            try set(fd.raw, Int32(IPPROTO_IP), IP_MULTICAST_IF, local, "can't set the default network send interface")
        }
        return fd.release()
    }

    private func set<T>(_ fd: Int32, _ level: Int32, _ option: Int32, _ value: T, _ failure: String) throws(VMMError) {
        let code = withUnsafeBytes(of: value) { setsockopt(fd, level, option, $0.baseAddress, socklen_t($0.count)) }
        guard code == 0 else { throw .system(failure) }
    }
}
