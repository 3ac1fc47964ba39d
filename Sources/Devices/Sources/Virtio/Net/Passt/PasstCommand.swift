import BatonRuntime
import Glibc

/// What `passt` is started with: a program that speaks for the guest on the host's network without privileges. Its frames
/// come over a stream socket, as those of `-netdev stream`.
struct PasstCommand {
    /// `hostfwd=`: a port of the host that leads to the guest.
    struct Forward {
        let isUDP: Bool
        /// A numeric address; empty for every one of the host's.
        let host: String
        /// 0 for one that is free.
        let hostPort: UInt16
        let guestPort: UInt16
    }

    /// Options that depend on nothing.
    var options: [String] = []
    var forwards: [Forward] = []

    private static let portsFile = "ports"
    private static let reconnectDelay: Int64 = 100_000_000
    private static let unprivileged = 1024

    /// Starts passt, and a back end on it.
    /// - Parameter type: as in `-netdev`.
    func makeBackend(id: String, type: String, vm: VirtualMachine) throws(VMMError) -> NetBackend {
        var program = HelperProcess.Program(
            name: "passt", purpose: "netdev '\(id)'",
            remedy: "Install it (Debian's package passt), or use another back end, such as -netdev tap."
        ) { [self] directory in arguments(directory) }
        // It logs to syslog as well, of which there may be none.
        program.omitted = [
            "Failed to send ", "UNIX domain socket bound", "You can now start", "    kvm ", "or qrap", "    ./qrap ",
        ]
        let helper = try HelperProcess("netdev-\(id)", program, vm: vm) { directory throws(VMMError) in
            try choosePorts(directory, id)
            try letNobodyIn(directory)
        }
        let heritage = try NetHeritage.find(id, backend: type, vm: vm)
        if heritage == nil, vm.cpr?.isTrial == true { return NetBackend(id: id, backend: type) }
        let backend = try SocketNetBackend(
            id: id, backend: type,
            peer: .connect(.unix(path: helper.socketPath), reconnectDelay: PasstCommand.reconnectDelay), vm: vm,
            heritage: heritage)
        backend.announcesGuest = true
        return backend
    }

    private func arguments(_ directory: String) -> [String] {
        let chosen = PasstCommand.ports(directory)
        var words = [
            "--foreground", "--quiet", "--stderr", "--socket", "\(directory)/socket", "--pid", "\(directory)/pid",
        ]
        if needsRoot { words += ["--runas", "0"] }
        words += options
        for (index, forward) in forwards.enumerated() {
            let port = forward.hostPort > 0 ? forward.hostPort : index < chosen.count ? chosen[index] : 0
            let place = forward.host.isEmpty ? "\(port)" : "\(forward.host)/\(port)"
            words += [forward.isUDP ? "--udp-ports" : "--tcp-ports", "\(place):\(forward.guestPort)"]
        }
        return words
    }

    // MARK: What passt runs as

    /// Started by root it becomes `nobody`, who cannot have a port below 1024.
    private var needsRoot: Bool {
        geteuid() == 0 && forwards.contains { $0.hostPort > 0 && $0.hostPort < PasstCommand.unprivileged }
    }

    private func letNobodyIn(_ directory: String) throws(VMMError) {
        guard geteuid() == 0, !needsRoot, let nobody = getpwnam("nobody") else { return }
        guard chown(directory, nobody.pointee.pw_uid, nobody.pointee.pw_gid) == 0 else {
            throw .system("cannot give '\(directory)' to the user nobody, whom passt becomes")
        }
    }

    // MARK: Ports

    /// Of port 0: kept in the helper's directory, so that they stay what they are when passt is started again.
    private func choosePorts(_ directory: String, _ id: String) throws(VMMError) {
        guard forwards.contains(where: { $0.hostPort == 0 }) else { return }
        var ports: [UInt16] = []
        for forward in forwards {
            guard forward.hostPort == 0 else {
                ports.append(0)
                continue
            }
            let port = try PasstCommand.freePort(isUDP: forward.isUDP)
            ports.append(port)
            let host = forward.host.isEmpty ? "*" : forward.host
            Report.info(
                "netdev \(id): \(forward.isUDP ? "udp" : "tcp"):\(host):\(port) leads to the guest's port "
                    + "\(forward.guestPort)")
        }
        let file = try FD.open("\(directory)/\(PasstCommand.portsFile)", O_WRONLY | O_CREAT | O_EXCL)
        let text = ports.map { "\($0)\n" }.joined()
        try FD.writeAll(file.raw, Array(text.utf8), to: PasstCommand.portsFile)
    }

    private static func ports(_ directory: String) -> [UInt16] {
        do throws(VMMError) {
            let file = try FD.open("\(directory)/\(portsFile)", O_RDONLY)
            let text = try FD.readAll(file.raw, limit: 1 << 16, from: portsFile)
            return text.split(separator: 10).map { UInt16(String(decoding: $0, as: UTF8.self)) ?? 0 }
        } catch {
            return []
        }
    }

    /// One that nobody has at present: passt takes it a moment later.
    private static func freePort(isUDP: Bool) throws(VMMError) -> UInt16 {
        let kind = Int32((isUDP ? SOCK_DGRAM : SOCK_STREAM).rawValue | SOCK_CLOEXEC.rawValue)
        let fd = socket(AF_INET, kind, 0)
        guard fd >= 0 else { throw .system("cannot find a free port") }
        defer { close(fd) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isBound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(fd, $0, length) == 0 && getsockname(fd, $0, &length) == 0
            }
        }
        guard isBound else { throw .system("cannot find a free port") }
        return UInt16(bigEndian: address.sin_port)
    }
}
