import BatonRuntime
@testable import Monitor
import Chardev

/// A whole QMP session: bytes of a client in pieces, every command that the core has, and what is answered.
extension Target {
    static let qmp = Target(
        name: "qmp",
        words: {
            let registry = try MonitorSession().vm.commands
            let members = registry.qmp.values.flatMap { $0.arguments.map(\.name) }
            return registry.qmp.keys.sorted() + Set(members).sorted()
                + [
                    "execute", "arguments", "id", "{\"execute\": \"", "\", \"arguments\": {", "\": ", "true", "null",
                    "[]",
                ]
        },
        seeds: {
            let hello = #"{"execute": "qmp_capabilities"}"#
            return [
                hello + #"{"execute": "query-status", "id": 7}{"execute": "query-commands"}"#,
                hello + #"{"execute": "human-monitor-command", "arguments": {"command-line": "info status"}}"#,
                hello + #"{"exec-oob": "x"}{"execute": "cont"}{"execute": "stop"}{"execute": "query-qmp-schema"}"#,
                hello
                    + #"{"execute": "ringbuf-write", "arguments": {"device": "r", "data": "YQ==", "format": "base64"}}"#
                    + #"{"execute": "ringbuf-read", "arguments": {"device": "r", "size": 10}}"#,
                hello + #"{"execute": "xp", "arguments": {}}{"execute": 3}[]{]"#,
                hello + #"{"execute": "query-metrics"}{"execute": "query-block"}{"execute": "system_reset"}"#,
                hello
                    + #"{"execute": "chardev-send-break", "arguments": {"id": "r"}}{"execute": "getfd", "arguments": {"fdname": "a"}}"#,
            ].map { [UInt8(40)] + Array($0.utf8) }
        },
        make: {
            let session = try MonitorSession()
            try QMPMonitor(vm: session.vm, chardev: session.chardev)
            return { bytes in
                session.talk(bytes)
                for line in session.chardev.written.split(separator: 10) {
                    guard let value = try? JSON(parsing: Array(line)), let object = value.objectValue else {
                        found("an answer is no object: \(String(decoding: line, as: UTF8.self))")
                    }
                    let kinds = ["QMP", "return", "error", "event"].filter { object[$0] != nil }
                    expect(kinds.count == 1, "an answer of the kinds \(kinds): \(value.text())")
                }
            }
        })

    /// The human monitor: keys, lines and every command.
    static let hmp = Target(
        name: "hmp",
        words: {
            try MonitorSession().vm.commands.hmp.keys.sorted() + ["help ", "info ", "\n", "\u{1b}[A", "0x80000000"]
        },
        seeds: {
            [
                "help\ninfo status\ninfo\n", "xp /4xw 0x80000000\nxp/3dg 0\n", "stop\ncont\n\u{1b}[A\u{1b}[B\u{8}\n",
                "ringbuf_write r abc\nringbuf_read r 5\n", "info chardev\ninfo metrics\nhelp xp\n", "\u{15}\u{17}a b\n",
            ].map { [UInt8(40)] + Array($0.utf8) }
        },
        make: {
            let session = try MonitorSession()
            try HMPMonitor(vm: session.vm, chardev: session.chardev)
            return { bytes in
                session.talk(bytes)
                expect(String(validating: session.chardev.written, as: UTF8.self) != nil, "what is shown is no text")
            }
        })
}

/// A VM with a monitor, without a machine. Each input is a client of its own.
private final class MonitorSession {
    let vm: VirtualMachine
    let chardev = InputChardev("monitor")
    private let memory = GuestMemory()

    init() throws {
        vm = try VirtualMachine()
        vm.architecture = "riscv64"
        try registerCoreCommands(vm: vm, memory: memory)
        try registerChardevCommands(vm: vm)
        try vm.add(chardev)
        // It adds itself.
        _ = try ChardevFactory.make("ringbuf,id=r,size=64", vm: vm)
        let ram = try memory.allocate(RAMRequest(name: "ram", usedLength: 1 << 16))
        try vm.addressSpace.map(ram, at: 0x8000_0000, size: 1 << 16)
        chardev.keepsOutput = true
    }

    /// Connects, types all, in pieces whose length comes first, with turns of the loop between them, and goes away.
    func talk(_ bytes: [UInt8]) {
        chardev.frontend?.chardevEvent(.closed)
        vm.loop.poll(timeout: 0)
        if vm.isRunning { vm.stop() }
        chardev.forgetOutput()
        chardev.frontend?.chardevEvent(.opened)
        let piece = max(1, Int(bytes.first ?? 1))
        var place = 1
        var turns = 0
        while place < bytes.count, turns < 10_000 {
            turns += 1
            let room = chardev.frontend?.chardevCanReceive() ?? 0
            let count = min(room, piece, bytes.count - place)
            chardev.type(Array(bytes[place..<place + count]))
            place += count
            vm.loop.poll(timeout: 0)
        }
        expect(turns < 10_000, "the monitor takes no more")
        for _ in 0..<100 where vm.loop.hasPostponed { vm.loop.poll(timeout: 0) }
        vm.loop.poll(timeout: 0)
    }
}
