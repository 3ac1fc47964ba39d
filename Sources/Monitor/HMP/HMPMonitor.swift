import BatonRuntime

/// The human monitor on a chardev: a prompt, and a line at a time.
public final class HMPMonitor: ResumableMonitor {
    private static let prompt = "(baton) "
    private static let outputHighWater = 64 << 10

    public var isMonitor: Bool { true }
    private unowned let vm: VirtualMachine
    let chardev: Chardev
    let number: Int
    private var editor = LineEditor()
    private var output = OutputQueue()
    /// Whether the keyboard is ours: false on a multiplexer that is switched away.
    private var hasFocus = true
    private var hasGreeted = false
    /// Received and not looked at yet.
    private var input: [UInt8] = []
    private(set) var isExecuting = false
    /// The other lines wait for a later turn of the loop.
    private var isPutOff = false
    /// The line being carried out has had its prompt from another process.
    private var isAnswered = false
    /// A session of the process before, which `.opened` does not end.
    private var isResuming = false
    /// There is no such session: this one begins when the guest is taken over.
    private var beginsAnew = false
    /// The line that replaced the process before has not had its prompt yet.
    private var owesPrompt = false

    /// Starts a monitor on `chardev`.
    /// - Throws: QEMU's error when the chardev is in use.
    @discardableResult
    public init(vm: VirtualMachine, chardev: Chardev) throws(VMMError) {
        self.vm = vm
        self.chardev = chardev
        number = MonitorUpdate.nextNumber(on: chardev, vm: vm)
        vm.add(monitor: self)
        isResuming = MonitorUpdate.isTakingOver(vm)
        beginsAnew = isResuming
        if let session = try MonitorUpdate.session(on: chardev, number: number, vm: vm) { try restore(session) }
        try chardev.attach(self)
    }

    public func chardevCanReceive() -> Int {
        output.count > Self.outputHighWater || isExecuting || isPutOff ? 0 : 1024
    }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        input.append(contentsOf: bytes)
        takeInput()
    }

    private func takeInput() {
        guard !isExecuting, !isPutOff else { return }
        isExecuting = true
        defer { isExecuting = false }
        // What follows a command stays in `input` while that runs: the command
        // may replace this process.
        while !input.isEmpty {
            var next = 0
            var line: String?
            while next < input.count, line == nil {
                switch editor.feed(input[next]) {
                case nil: break
                case .echo(let text)?: show(text)
                case .line(let text)?: line = text
                }
                next += 1
            }
            input.removeFirst(next)
            guard let line else { continue }
            show("\n")
            let result = HMPExecutor.execute(line, commands: vm.commands)
            if isAnswered {
                isAnswered = false
                continue
            }
            // It may quote a file, a peer or the guest; the monitor's own words control the terminal.
            show(TerminalText.escaped(result, keepingLines: true))
            show(Self.prompt)
            // A client may send hundreds at once.
            if !input.isEmpty, !vm.loop.hasTimeLeft { return putOff() }
        }
    }

    /// Goes on with the input in a later turn.
    private func putOff() {
        isPutOff = true
        vm.loop.postpone { [weak self] in
            guard let self else { return }
            isPutOff = false
            takeInput()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    // MARK: Update

    func handOver() -> StateWriter {
        var writer = StateWriter()
        writer.put("mode", "readline")
        writer.put("greeted", hasGreeted)
        writer.put("line", bytes: editor.bytes)
        writer.put("input", bytes: input)
        writer.put("output", bytes: output.contents)
        writer.put("owes-prompt", isExecuting || owesPrompt)
        return writer
    }

    private func restore(_ state: StateReader) throws(VMMError) {
        // Another kind of monitor begins anew.
        guard try state.string("mode") == "readline" else { return }
        beginsAnew = false
        hasGreeted = try state.bool("greeted")
        editor.restore(try state.bytes("line"))
        input = try state.bytes("input")
        output.append(try state.bytes("output"))
        owesPrompt = try state.bool("owes-prompt")
    }

    private func endSession() {
        output.removeAll()
        editor.clear()
        input = []
        hasGreeted = false
        owesPrompt = false
    }

    func takeOver(_ state: StateReader?) throws(VMMError) {
        endSession()
        beginsAnew = true
        if let state { try restore(state) }
    }

    func resume() {
        if isResuming {
            isResuming = false
            if beginsAnew, chardev.isOpen {
                chardevEvent(.opened)
                if hasFocus, chardev.backend == "mux" { chardevEvent(.focusGained) }
            }
        }
        if owesPrompt {
            owesPrompt = false
            show(Self.prompt)
        } else {
            output.drain(into: chardev)
        }
        vm.loop.later { [weak self] in
            guard let self else { return }
            takeInput()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    func takenBack(answered: Bool) {
        guard answered else { return }
        // The new process has shown and read all that.
        output.removeAll()
        input = []
        if isExecuting { isAnswered = true }
    }

    public func chardevWritable() {
        output.drain(into: chardev)
        if chardevCanReceive() > 0 { chardev.acceptInput() }
    }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            if isResuming { return }
            output.removeAll()
            editor.clear()
            hasGreeted = false
            // On a multiplexer the focus comes, or goes, right after this.
            if hasFocus, chardev.backend != "mux" { greet() }
        case .closed:
            // A session that is taken over ends with its own state, and not as its chardev gets another descriptor.
            if isResuming { return }
            output.removeAll()
            owesPrompt = false
            editor.clear()
        case .focusGained:
            hasFocus = true
            if isResuming { return }
            show("\n")
            greet()
        case .focusLost:
            if hasFocus, hasGreeted, !isResuming { show("\n") }
            hasFocus = false
        case .breakCondition: break
        }
    }

    private func greet() {
        if !hasGreeted {
            hasGreeted = true
            show("Baton \(BatonVersion.number) monitor - type 'help' for more information\n")
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
