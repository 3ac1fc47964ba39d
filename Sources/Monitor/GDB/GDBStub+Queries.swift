import BatonRuntime

/// The packets `q` and `Q`.
extension GDBStub {
    func executeQuery(_ kind: Character, _ text: String) {
        let name = String(kind) + text.prefix { $0 != ":" && $0 != "," && $0 != ";" && $0 != "=" }
        let rest = text.dropFirst(name.utf8.count - 1).dropFirst()
        switch name {
        case "qSupported":
            reply(
                "PacketSize=\(String(GDBFraming.limit, radix: 16));qXfer:features:read+;vContSupported+;"
                    + "QStartNoAckMode+")
        case "QStartNoAckMode":
            reply("OK")
            session.isReliable = true
        case "qXfer": transfer(rest)
        case "qAttached": reply("1")
        case "qC": reply("QC" + GDBStub.thread(session.cpu))
        case "qfThreadInfo": reply("m" + (0..<cpuCount).map { GDBStub.thread($0) }.joined(separator: ","))
        case "qsThreadInfo": reply("l")
        case "qThreadExtraInfo":
            guard let cpu = thread(rest), let info = vm.accelerator?.cpus[cpu] else { return reply(.invalid) }
            reply(GDBText.hex("CPU#\(cpu) [\(info.halted ? "halted " : "running")]".utf8))
        case "qRcmd": carryOut(rest)
        case "qqemu.Supported": reply("sstepbits;sstep;PhyMemMode")
        case "qqemu.sstepbits":
            reply("ENABLE=\(GDBSession.stepsAtAll),NOIRQ=\(GDBSession.withoutInterrupts)")
        case "qqemu.sstep": reply("0x" + String(session.stepFlags, radix: 16))
        case "Qqemu.sstep":
            let known = GDBSession.stepsAtAll | GDBSession.withoutInterrupts
            guard let flags = GDBText.number(rest), flags & ~known == 0 else { return reply(.invalid) }
            session.stepFlags = flags
            reply("OK")
        case "qqemu.PhyMemMode": reply(session.isPhysical ? "1" : "0")
        case "Qqemu.PhyMemMode":
            guard let mode = GDBText.number(rest), mode <= 1 else { return reply(.invalid) }
            session.isPhysical = mode == 1
            reply("OK")
        default: reply("")
        }
    }

    /// `qXfer:features:read:DOCUMENT:OFFSET,LENGTH`
    private func transfer(_ text: Substring) {
        let words = text.split(separator: ":", omittingEmptySubsequences: false)
        guard words.count == 4, words[0] == "features", words[1] == "read" else { return reply("") }
        guard let document = target.descriptions.first(where: { $0.name == words[2] }) else { return reply("E00") }
        guard let place = GDBText.numbers(words[3]), place.count == 2 else { return reply(.invalid) }
        let bytes = Array(document.text.utf8)
        let start = Int(min(place[0], UInt64(bytes.count)))
        // Each byte may need an escape.
        let length = Int(min(place[1], UInt64(GDBFraming.limit / 2 - 16)))
        let end = min(bytes.count, start + length)
        let isLast = end == bytes.count
        reply(bytes: [isLast ? UInt8(ascii: "l") : UInt8(ascii: "m")] + GDBText.escaped(bytes[start..<end]))
    }

    /// `qRcmd`: a line for the human monitor.
    private func carryOut(_ text: Substring) {
        guard let bytes = GDBText.bytes(text), let line = String(validating: bytes, as: UTF8.self) else {
            return reply(.invalid)
        }
        // The command may replace this process.
        isExecuting = true
        let result = HMPExecutor.execute(line, commands: vm.commands)
        isExecuting = false
        let shown = Array(TerminalText.escaped(result, keepingLines: true).utf8)
        for start in stride(from: 0, to: shown.count, by: GDBFraming.limit / 4) {
            reply("O" + GDBText.hex(shown[start..<min(shown.count, start + GDBFraming.limit / 4)]))
        }
        reply("OK")
    }
}
