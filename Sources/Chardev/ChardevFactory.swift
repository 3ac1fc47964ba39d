import BatonRuntime
import Glibc

/// Makes chardevs from the command line and adds them to the VM.
public enum ChardevFactory {
    /// The back ends, for `-chardev help` and `query-chardev-backends`.
    public static let backends = [
        "file", "mux", "null", "pipe", "pty", "ringbuf", "socket", "stdio", "udp",
    ]

    /// The text of `-chardev help`.
    public static var help: String {
        "Available chardev backend types: \n" + backends.map { "  \($0)\n" }.joined()
    }

    /// The text of `-chardev BACKEND,help`; nil for a back end that there is not.
    public static func help(_ backend: String) -> String? {
        let common = [
            DeviceProperty("mux", "bool", "whether several front ends may share it"),
            DeviceProperty("reopen-on-cpr", "bool", "whether it is closed, and opened anew, over an update"),
        ]
        let own: [DeviceProperty]
        switch backend {
        case "null", "pty": own = []
        case "file":
            own = [
                DeviceProperty("path", "str", "where output goes"),
                DeviceProperty("append", "bool", "whether what is there stays"),
            ]
        case "ringbuf": own = [DeviceProperty("size", "size", "bytes that are kept; a power of two")]
        case "pipe": own = [DeviceProperty("path", "str", "FIFOs PATH.in and PATH.out, or one file for both ways")]
        case "udp":
            own = [
                DeviceProperty("host", "str", "who is sent to"), DeviceProperty("port", "str", "at which port"),
                DeviceProperty("localaddr", "str", "where from"), DeviceProperty("localport", "str", "from which port"),
            ]
        case "stdio": own = [DeviceProperty("signal", "bool", "whether Ctrl-C ends the VMM")]
        case "socket":
            own = [
                DeviceProperty("path", "str", "a unix socket"), DeviceProperty("host", "str", "of a TCP socket"),
                DeviceProperty("port", "str", "of a TCP socket"), DeviceProperty("fd", "int", "an open socket"),
                DeviceProperty("server", "bool", "whether it listens"),
                DeviceProperty("wait", "bool", "whether the start waits for a client"),
                DeviceProperty("nodelay", "bool", "whether TCP sends at once"),
                DeviceProperty("telnet", "bool", "of a TCP server: whether clients speak telnet"),
                DeviceProperty("reconnect", "uint32", "seconds until a client connects again"),
                DeviceProperty("reconnect-ms", "uint32", "the same in milliseconds"),
            ]
        default: return nil
        }
        return DeviceProperty.help(own + common, of: backend)
    }

    /// Parses and carries out `-chardev BACKEND,id=ID,…`.
    public static func make(_ text: String, vm: VirtualMachine) throws(VMMError) -> Chardev {
        try make(KeyValueOptions(text, impliedKey: "backend"), vm: vm)
    }

    /// Makes the chardev that `options` (`backend=…,id=…`) describe.
    @discardableResult
    public static func make(_ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) -> Chardev {
        guard let id = try options.identifier("id") else { throw VMMError("chardev: no id specified") }
        guard let backend = try options.string("backend"), !backend.isEmpty else {
            throw VMMError("chardev: \"\(id)\" missing backend")
        }
        guard backends.contains(backend), backend != "mux" else {
            throw VMMError(
                "'\(backend)' is not a valid char driver name",
                hint: "Use -chardev help to list the back ends.")
        }
        let multiplexed = try options.bool("mux") ?? false
        // Nothing may be opened for a chardev that cannot be added.
        guard vm.chardev(id) == nil else { throw VMMError("Duplicate ID '\(id)' for chardev") }
        let reopens = try options.bool("reopen-on-cpr") ?? false
        let chardev = try makeBackend(
            backend, id: multiplexed ? "\(id)-base" : id, reopens: reopens, options, vm: vm)
        chardev.reopensOnCpr = reopens
        guard multiplexed else {
            try vm.add(chardev)
            vm.handover.map { ChardevUpdate.followChanges(of: chardev, $0) }
            return chardev
        }
        let mux = try MuxChardev(id: id, base: chardev) { [unowned vm] in vm.requestQuit(cause: "host-ui") }
        mux.reopensOnCpr = reopens
        if isHeld(vm) { mux.hold() }
        if let heritage = try ChardevHeritage.find(id, backend: "mux", reopen: reopens, vm: vm) {
            try mux.inherit(heritage)
        }
        try vm.add(mux)
        vm.handover.map { ChardevUpdate.followChanges(of: mux, $0) }
        return mux
    }

    /// Whether a chardev that nothing was inherited for must not be opened.
    static func isTrial(_ vm: VirtualMachine) -> Bool { vm.cpr?.isTrial == true }

    /// Whether the guest is still another process' own.
    private static func isHeld(_ vm: VirtualMachine) -> Bool { vm.cpr?.awaitsLoad == true }

    private static func makeBackend(
        _ backend: String, id: String, reopens: Bool, _ options: KeyValueOptions, vm: VirtualMachine
    ) throws(VMMError) -> Chardev {
        let heritage = try ChardevHeritage.find(id, backend: backend, reopen: reopens, vm: vm)
        let held = isHeld(vm)
        switch backend {
        case "null":
            try options.finish()
            return NullChardev(id: id)
        case "file":
            guard let path = try options.string("path") else {
                throw VMMError("chardev: file: no filename given")
            }
            let append = try options.bool("append") ?? false
            try options.finish()
            var isElsewhere = false
            if let heritage, heritage.mayStartAnew { isElsewhere = try heritage.state.string("path") != path }
            if let heritage, !isElsewhere {
                return try FileChardev(id: id, path: path, heritage: heritage, isStandIn: isTrial(vm))
            }
            heritage?.discard()
            if isTrial(vm) {
                try FD.checkWritable(path, kinds: FileChardev.kinds)
                return UnopenedChardev(id: id, backend: backend)
            }
            let file = try FileChardev(id: id, path: path, append: append || (held && reopens))
            file.startsAnew = isElsewhere
            // The process before writes to it as long as the guest runs there.
            if held, reopens, !append {
                try vm.handover?.whenHandedOver { () throws(VMMError) in try file.empty() }
            }
            return file
        case "pty":
            try options.finish()
            if isTrial(vm) {
                try heritage.map { heritage throws(VMMError) in try PTYChardev.checkStandIn(heritage) }
                return UnopenedChardev(id: id, backend: backend)
            }
            if let heritage { return try PTYChardev(id: id, loop: vm.loop, heritage: heritage, held: held) }
            let pty = try PTYChardev(id: id, loop: vm.loop, held: held)
            announce("char device redirected to \(pty.slavePath) (label \(id))\n")
            return pty
        case "pipe", "udp": return try makeKept(backend, id: id, options, vm: vm, heritage: heritage, held: held)
        case "ringbuf":
            let size = try options.size("size") ?? 65536
            try options.finish()
            let ring = try RingBufferChardev(id: id, size: size)
            if let heritage { _ = try heritage.bytes("contents").withUnsafeBytes { ring.write($0) } }
            return ring
        case "stdio":
            let signals = try options.bool("signal") ?? true
            try options.finish()
            let stdio = try StdioChardev(id: id, loop: vm.loop, signals: signals, heritage: heritage, held: held)
            if held, heritage == nil { try vm.handover?.whenHandedOver { StandardTerminal.save() } }
            return stdio
        default:
            return try SocketOptions.make(id: id, options, vm: vm, heritage: heritage, held: held)
        }
    }

    /// One whose descriptors stay what they are from the start on.
    private static func makeKept(
        _ backend: String, id: String, _ options: KeyValueOptions, vm: VirtualMachine, heritage: ChardevHeritage?,
        held: Bool
    ) throws(VMMError) -> Chardev {
        let chardev: KeptStreamChardev
        let open: () throws(VMMError) -> Void
        if backend == "pipe" {
            guard let path = try options.string("path") else { throw VMMError("chardev: pipe: no device path given") }
            let pipe = PipeChardev(id: id, path: path, loop: vm.loop, held: held)
            open = { () throws(VMMError) in try pipe.open() }
            chardev = pipe
        } else {
            guard let port = try options.string("port") else {
                throw VMMError("chardev: udp: remote port not specified")
            }
            let remote = SocketAddress.tcp(host: try options.string("host") ?? "localhost", port: port)
            let (host, from) = (try options.string("localaddr"), try options.string("localport"))
            let local = host == nil && from == nil ? nil : SocketAddress.tcp(host: host ?? "", port: from ?? "0")
            let udp = UDPChardev(id: id, remote: remote, local: local, loop: vm.loop, held: held)
            open = { () throws(VMMError) in try udp.open() }
            chardev = udp
        }
        try options.finish()
        if let heritage {
            try chardev.inherit(heritage)
        } else if isTrial(vm) {
            return UnopenedChardev(id: id, backend: backend)
        } else if held, let handover = vm.handover {
            try handover.whenHandedOver(open)
        } else {
            try open()
        }
        return chardev
    }

    private static func announce(_ text: String) {
        var text = text
        text.withUTF8 { _ = Glibc.write(1, $0.baseAddress, $0.count) }
    }
}

/// The options of `-chardev socket`.
enum SocketOptions {
    static func make(
        id: String, _ options: KeyValueOptions, vm: VirtualMachine, heritage: ChardevHeritage?, held: Bool
    ) throws(VMMError) -> Chardev {
        let path = try options.string("path")
        let host = try options.string("host")
        let port = try options.string("port")
        let fd = try options.number("fd", in: 0...UInt64(Int32.max)).map { Int32($0) }
        let server = try options.bool("server") ?? false
        let wait = try options.bool("wait")
        let delay = try options.bool("delay")
        let noDelay = try options.bool("nodelay") ?? (delay == false)
        let isTelnet = try options.bool("telnet") ?? false
        let seconds = try options.number("reconnect", in: 0...UInt64(1 << 30))
        let milliseconds = try options.number("reconnect-ms", in: 0...UInt64(1 << 40))
        try options.finish()

        guard [path != nil, host != nil || port != nil, fd != nil].count(where: { $0 }) == 1 else {
            throw VMMError("chardev: socket: exactly one of 'path', 'host' with 'port', and 'fd' is needed")
        }
        if server, (seconds ?? 0) > 0 || (milliseconds ?? 0) > 0 {
            throw VMMError("'reconnect' option is incompatible with socket in server listen mode")
        }
        if !server, wait != nil {
            throw VMMError("'wait' option is incompatible with socket in client connect mode")
        }
        if seconds != nil, milliseconds != nil {
            throw VMMError("'reconnect' and 'reconnect-ms' are mutually exclusive")
        }

        if isTelnet, !server || host == nil && port == nil {
            throw VMMError("'telnet' option is for a TCP server", hint: "Add server=on, or leave telnet out.")
        }

        let address: SocketAddress
        if let path {
            address = .unix(path: path)
        } else if fd != nil {
            address = .unix(path: "")
        } else {
            guard let port else { throw VMMError("chardev: socket: no port given") }
            address = .tcp(host: host ?? "", port: port)
        }
        var configuration = SocketChardev.Configuration(address: address)
        configuration.isServer = server
        // A guest that stands still for an update does not wait for a client.
        configuration.waitsForClient = (wait ?? true) && !held
        configuration.isCancelled = { [unowned vm] in vm.isEnding }
        configuration.reconnectDelay =
            Int64(milliseconds ?? 0) * 1_000_000 + Int64(seconds ?? 0) * 1_000_000_000
        configuration.noDelay = noDelay
        configuration.isTelnet = isTelnet
        let chardev = SocketChardev(id: id, loop: vm.loop, configuration: configuration, held: held)
        if let heritage {
            guard heritage.mayStartAnew, server, !heritage.isServer(at: address) else {
                try chardev.inherit(heritage)
                return chardev
            }
            heritage.discard()
            chardev.startsAnew = true
        }
        if ChardevFactory.isTrial(vm) {
            if server, let path { try FD.checkWritable(path, kinds: [.socket]) }
            return UnopenedChardev(id: id, backend: "socket")
        }
        guard let fd else {
            // Its name or port may be the process before's until the guest is handed over.
            guard held, let cpr = vm.handover else {
                try chardev.open()
                return chardev
            }
            try cpr.whenHandedOver { () throws(VMMError) in try chardev.open() }
            return chardev
        }
        guard FD.isOpen(fd) else { throw VMMError("File descriptor '\(fd)' is not open") }
        if server {
            try chardev.adopt(listener: fd)
        } else {
            try chardev.adopt(connection: fd)
        }
        return chardev
    }
}
