import BatonRuntime

/// The human monitor on a chardev: a prompt, and a line at a time.
public final class HMPMonitor: ChardevFrontend {
    private static let prompt = "(baton) "
    private static let outputHighWater = 64 << 10

    private unowned let vm: VirtualMachine
    private let chardev: Chardev
    private var editor = LineEditor()
    private var output = OutputQueue()
    /// Whether the keyboard is ours: false on a multiplexer that is switched away.
    private var hasFocus = true
    private var hasGreeted = false

    /// Starts a monitor on `chardev`.
    /// - Throws: QEMU's error when the chardev is in use.
    @discardableResult
    public init(vm: VirtualMachine, chardev: Chardev) throws(VMMError) {
        self.vm = vm
        self.chardev = chardev
        vm.add(monitor: self)
        try chardev.attach(self)
    }

    public func chardevCanReceive() -> Int { output.count > Self.outputHighWater ? 0 : 1024 }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        for byte in bytes {
            switch editor.feed(byte) {
            case nil: break
            case .echo(let text)?: show(text)
            case .line(let line)?:
                show("\n")
                show(HMPExecutor.execute(line, commands: vm.commands))
                show(Self.prompt)
            }
        }
    }

    public func chardevWritable() {
        output.drain(into: chardev)
        if chardevCanReceive() > 0 { chardev.acceptInput() }
    }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            output.removeAll()
            editor.clear()
            hasGreeted = false
            // On a multiplexer the focus comes, or goes, right after this.
            if hasFocus, chardev.backend != "mux" { greet() }
        case .closed:
            output.removeAll()
            editor.clear()
        case .focusGained:
            hasFocus = true
            show("\n")
            greet()
        case .focusLost:
            if hasFocus, hasGreeted { show("\n") }
            hasFocus = false
        case .breakCondition: break
        }
    }

    private func greet() {
        if !hasGreeted {
            hasGreeted = true
            show("Baton \(MonitorVersion.version) monitor - type 'help' for more information\n")
        }
        show(Self.prompt + editor.text)
    }

    /// Shows text, with the line ends that a raw terminal needs.
    private func show(_ text: String) {
        guard !text.isEmpty else { return }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.utf8.count + 16)
        for byte in text.utf8 {
            if byte == 10 { bytes.append(13) }
            bytes.append(byte)
        }
        output.append(bytes)
        output.drain(into: chardev)
    }
}
