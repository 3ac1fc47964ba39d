import BatonRuntime

/// The packets of gdb's remote protocol. One that is not known is answered by an empty one.
extension GDBStub {
    func execute(_ packet: [UInt8]) {
        guard let kind = packet.first else { return reply("") }
        // Only X has more than text, behind a colon.
        let text = String(decoding: packet.dropFirst().prefix { $0 < 0x80 }, as: UTF8.self)
        switch Character(Unicode.Scalar(kind)) {
        case "?":
            // As in QEMU: who asks has set nothing yet.
            session.points = []
            applyPoints()
            reply("T05thread:\(GDBStub.thread(session.cpu));")
        case "g": readRegisters()
        case "G": writeRegisters(text)
        case "p": readRegister(text)
        case "P": writeRegister(text)
        case "m": readMemory(text)
        case "M":
            let parts = text.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            writeMemory(parts[0], parts.count == 2 ? GDBText.bytes(parts[1]) : nil)
        case "X":
            let colon = packet.firstIndex(of: UInt8(ascii: ":"))
            let place = String(decoding: packet[1..<max(1, colon ?? packet.count)], as: UTF8.self)
            writeMemory(place, colon.map { Array(packet[($0 + 1)...]) })
        case "c", "s": resume(text, steps: kind == UInt8(ascii: "s"))
        case "C", "S":
            // The signal is none that a guest could get.
            let parts = text.split(separator: ";", maxSplits: 1, omittingEmptySubsequences: false)
            resume(parts.count == 2 ? parts[1] : "", steps: kind == UInt8(ascii: "S"))
        case "Z", "z": setPoint(text, isThere: kind == UInt8(ascii: "Z"))
        case "H": selectThread(text)
        case "T": reply(thread(text) == nil ? GDBError.invalid.rawValue : "OK")
        case "D": detach()
        case "k": vm.requestQuit()
        case "v": executeV(text)
        case "q", "Q": executeQuery(kind == UInt8(ascii: "q") ? "q" : "Q", text)
        default: reply("")
        }
    }

    private func executeV(_ text: String) {
        if text == "Cont?" {
            reply("vCont;c;C;s;S")
        } else if text.hasPrefix("Cont;") {
            continueEach(text.dropFirst(5))
        } else if text.hasPrefix("Kill") {
            reply("OK")
            vm.requestQuit()
        } else {
            // vMustReplyEmpty among them.
            reply("")
        }
    }

    // MARK: Registers

    private func readRegisters() {
        var bytes: [UInt8] = []
        for number in 0..<target.generalRegisters { bytes += target.register(number, ofCPU: session.cpu) ?? [] }
        reply(GDBText.hex(bytes))
    }

    private func writeRegisters(_ text: String) {
        guard let bytes = GDBText.bytes(text) else { return reply(.invalid) }
        var values: [(Int, [UInt8])] = []
        var rest = bytes[...]
        for number in 0..<target.generalRegisters {
            guard let size = target.register(number, ofCPU: session.cpu)?.count, rest.count >= size else {
                return reply(.invalid)
            }
            values.append((number, Array(rest.prefix(size))))
            rest = rest.dropFirst(size)
        }
        for (number, value) in values { _ = target.setRegister(number, ofCPU: session.cpu, value) }
        reply("OK")
    }

    private func readRegister(_ text: String) {
        guard let number = GDBText.number(text).flatMap({ Int(exactly: $0) }),
            let bytes = target.register(number, ofCPU: session.cpu)
        else { return reply(.fault) }
        reply(GDBText.hex(bytes))
    }

    private func writeRegister(_ text: String) {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, let number = GDBText.number(parts[0]).flatMap({ Int(exactly: $0) }),
            let bytes = GDBText.bytes(parts[1]), target.setRegister(number, ofCPU: session.cpu, bytes)
        else { return reply(.invalid) }
        reply("OK")
    }

    // MARK: Memory

    /// `ADDRESS,LENGTH`, of which the answer, or what comes with it, fits into a packet.
    private func range(_ text: some StringProtocol) -> (address: UInt64, length: Int)? {
        guard let numbers = GDBText.numbers(text), numbers.count == 2, numbers[1] <= UInt64(GDBFraming.limit / 2)
        else { return nil }
        return (numbers[0], Int(numbers[1]))
    }

    /// The parts of a range in one page each, where the guest has RAM or read-only memory. A device's registers are
    /// left alone, as looking at them could change it.
    /// - Returns: nil where not all of it is there.
    private func pieces(_ address: UInt64, _ length: Int) -> [(address: UInt64, offset: Int, range: RAMRange)]? {
        var pieces: [(address: UInt64, offset: Int, range: RAMRange)] = []
        var offset = 0
        while offset < length {
            let virtual = address &+ UInt64(offset)
            let physical = session.isPhysical ? virtual : target.physicalAddress(virtual, ofCPU: session.cpu)
            guard let physical, let range = vm.addressSpace.ramRange(containing: physical) else { return nil }
            pieces.append((physical, offset, range))
            offset += 4096 - Int(physical & 0xfff)
        }
        return pieces
    }

    private func readMemory(_ text: String) {
        guard let (address, length) = range(text) else { return reply(.invalid) }
        guard let pieces = pieces(address, length) else { return reply(.fault) }
        var bytes: [UInt8] = []
        for (place, offset, range) in pieces {
            let count = min(length - offset, 4096 - Int(place & 0xfff))
            let host = range.host + Int(place - range.start)
            bytes += UnsafeRawBufferPointer(start: host, count: count)
        }
        reply(GDBText.hex(bytes))
    }

    private func writeMemory(_ text: some StringProtocol, _ bytes: [UInt8]?) {
        guard let (address, length) = range(text), let bytes, bytes.count == length else { return reply(.invalid) }
        // What a device keeps elsewhere would not be what the guest reads.
        guard let pieces = pieces(address, length), !pieces.contains(where: { $0.range.hasDevice }) else {
            return reply(.fault)
        }
        do throws(VMMError) {
            try vm.beforeMemoryChanges()
            for (place, offset, _) in pieces {
                let end = min(length, offset + 4096 - Int(place & 0xfff))
                let part = Array(bytes[offset..<end])
                var failure: VMMError?
                part.withUnsafeBytes { buffer in
                    do throws(VMMError) {
                        try vm.addressSpace.write(buffer, at: place, what: "a debugger's data")
                    } catch { failure = error }
                }
                if let failure { throw failure }
            }
        } catch { return reply(.fault) }
        reply("OK")
    }

    // MARK: Running

    /// `c` and `s`, from an address if one is given.
    private func resume(_ text: some StringProtocol, steps: Bool) {
        if !text.isEmpty {
            guard let address = GDBText.number(text) else { return reply(.invalid) }
            let bytes = (0..<8).map { UInt8(truncatingIfNeeded: address >> UInt64($0 * 8)) }
            _ = target.setRegister(target.programCounter, ofCPU: session.runCPU, bytes)
        }
        run(steps ? [session.runCPU: .step] : [:])
    }

    /// `vCont`: of several actions the first that names a CPU is its own, and one that no action names stands still.
    private func continueEach(_ text: Substring) {
        var actions: [Int: DebugAction] = [:]
        for part in text.split(separator: ";", omittingEmptySubsequences: false) {
            let words = part.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            let action: DebugAction
            switch words[0].first {
            case "c", "C": action = .run
            case "s", "S": action = .step
            default: return reply(.invalid)
            }
            let cpus: [Int]
            if words.count == 1 || words[1] == "-1" {
                cpus = Array(0..<cpuCount)
            } else {
                guard let cpu = thread(words[1]) else { return reply(.invalid) }
                cpus = [cpu]
            }
            for cpu in cpus where actions[cpu] == nil { actions[cpu] = action }
        }
        for cpu in 0..<cpuCount where actions[cpu] == nil { actions[cpu] = .stand }
        run(actions)
    }

    /// `TYPE,ADDRESS,KIND`, perhaps with conditions, which gdb looks at itself.
    private func setPoint(_ text: String, isThere: Bool) {
        guard let first = text.split(separator: ";").first, let numbers = GDBText.numbers(first), numbers.count == 3
        else { return reply(.invalid) }
        guard let kind = Int(exactly: numbers[0]).flatMap(DebugPoint.Kind.init) else { return reply("") }
        let point = DebugPoint(kind: kind, address: numbers[1], length: numbers[2])
        if isThere {
            guard session.points.count < GDBSession.pointLimit else { return reply(.noSpace) }
            session.points.insert(point)
        } else {
            session.points.remove(point)
        }
        applyPoints()
        reply("OK")
    }

    private func detach() {
        session.points = []
        applyPoints()
        reply("OK")
        run([:])
        session.owesStop = false
    }

    // MARK: Threads

    /// The CPU of a thread's number; the first of any (0).
    func thread(_ text: some StringProtocol) -> Int? {
        guard let number = GDBText.number(text), number <= UInt64(cpuCount) else { return nil }
        return max(0, Int(number) - 1)
    }

    private func selectThread(_ text: String) {
        let id = text.dropFirst()
        switch text.first {
        case "c", "g":
            // Any, or all of them: the one that it is.
            guard id != "-1", id != "0" else { return reply("OK") }
            guard let cpu = thread(id) else { return reply(.invalid) }
            if text.first == "g" { session.cpu = cpu } else { session.runCPU = cpu }
            reply("OK")
        default: reply(.invalid)
        }
    }
}
