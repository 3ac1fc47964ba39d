import BatonRuntime
import Glibc

/// Where a device's server is: as in QEMU, a `SocketAddress`, which can be the
/// path of a UNIX socket, or a connection that somebody else has made.
struct VFIOUserAddress {
    private enum Socket {
        case path(String)
        /// `socket.str`.
        case descriptor(String)
    }

    private let socket: Socket
    /// Tells the device from others, in messages and over updates.
    let name: String
    /// Without an id the next process cannot tell which connection is meant:
    /// numbers mean nothing there.
    let blocker: String?

    /// - Throws: QEMU's errors for values that are none.
    init(_ options: DeviceOptions) throws(VMMError) {
        let type = try options.text("socket.type")
        let path = try options.text("socket.path")
        let descriptor = try options.text("socket.str")
        guard type != nil || path != nil || descriptor != nil else {
            throw VMMError(
                "No socket specified",
                hint: "e.g. -device '{\"driver\":\"vfio-user-pci\", "
                    + "\"socket\": {\"path\": \"/tmp/vfio-user.sock\", \"type\": \"unix\"}}'")
        }
        guard let type else { throw VMMError("Parameter 'socket.type' is missing") }
        let (key, value, other): (String, String?, String?)
        switch type {
        case "unix": (key, value, other) = ("path", path, descriptor.map { _ in "str" })
        case "fd": (key, value, other) = ("str", descriptor, path.map { _ in "path" })
        default: throw VMMError("Unsupported socket type \(type)")
        }
        if let other { throw VMMError("Parameter 'socket.\(other)' is unexpected") }
        guard let value else { throw VMMError("Parameter 'socket.\(key)' is missing") }
        if type == "unix" {
            socket = .path(value)
            name = value
            blocker = nil
        } else {
            socket = .descriptor(value)
            name = "fd:\(options.id ?? value)"
            blocker = options.id == nil ? "vfio-user device with socket.str=\(value) needs an id property" : nil
        }
    }

    /// A connection to the server.
    /// - Parameter taken: connections that are other devices'.
    func connect(except taken: [Int32]) throws(VMMError) -> OwnedFD {
        switch socket {
        case .path(let path):
            let (fd, isConnected) = try SocketAddress.unix(path: path).startConnecting()
            let owned = OwnedFD(adopting: fd)
            guard isConnected else { throw .system("Failed to connect to '\(path)'", errno: EAGAIN) }
            return owned
        case .descriptor(let text):
            guard let number = SizeText.unsignedNumber(text), let fd = Int32(exactly: number) else {
                throw VMMError("Unable to parse FD number \(text)")
            }
            let isStream = DescriptorKind.isSocket(fd, listening: false)
            guard isStream, DescriptorKind.isLocal(fd), DescriptorKind.hasPeer(fd) else {
                throw VMMError("File descriptor '\(text)' is not a connected UNIX stream socket")
            }
            guard !taken.contains(fd) else { throw VMMError("File descriptor '\(text)' is another device's") }
            try FD.setCloseOnExec(fd, true)
            return OwnedFD(adopting: fd)
        }
    }
}
