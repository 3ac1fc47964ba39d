import BatonRuntime

/// What a hart's section of a checkpoint says about the built-in SBI, beside
/// `hsm`. Fields are there only while they say something, so that guests that
/// use none of it can go back to a VMM that does not know them.
extension Hart {
    func saveSBI(to writer: inout StateWriter) {
        if state.pointee.resumeAddress != HartState.noResume {
            writer.put("sbi-resume", [state.pointee.resumeAddress, state.pointee.resumeOpaque])
        }
        guard let sbi = accelerator.sbi else { return }
        let features = sbi.features.settings[index]
        if features != FirmwareFeatures.Setting() {
            writer.put("sbi-features", [features.values, features.locked])
        }
        let events = sbi.events
        if !events.masked[index] || events.local[index] != SupervisorEvent(hart: index) {
            writer.put("sbi-events", [events.masked[index] ? 1 : 0] + Hart.words(events.local[index]))
        }
        if index == 0, events.global != SupervisorEvent(hart: 0) {
            writer.put("sbi-global-event", Hart.words(events.global))
        }
    }

    /// Reads and checks what `saveSBI` wrote.
    /// - Returns: what puts it into effect.
    func loadSBI(from reader: StateReader) throws(VMMError) -> () -> Void {
        var resume = [HartState.noResume, 0]
        if reader.has("sbi-resume") {
            resume = try reader.array("sbi-resume", count: 2...2)
            guard resume[0] & 1 == 0 else { throw invalid(reader, "suspended hart") }
        }
        var features = FirmwareFeatures.Setting()
        if reader.has("sbi-features") {
            let words = try reader.array("sbi-features", count: 2...2)
            guard (words[0] | words[1]) & ~FirmwareFeatures.Setting.mask == 0 else { throw invalid(reader, "features") }
            features = FirmwareFeatures.Setting(values: words[0], locked: words[1])
        }
        var masked = true
        var local = SupervisorEvent(hart: index)
        if reader.has("sbi-events") {
            let words = try reader.array("sbi-events", count: 12...12)
            guard words[0] <= 1, let event = event(words[1...]), event.hart == index else {
                throw invalid(reader, "events")
            }
            masked = words[0] == 1
            local = event
        }
        var global = index == 0 ? SupervisorEvent(hart: 0) : nil
        if reader.has("sbi-global-event") {
            guard index == 0, let event = event(try reader.array("sbi-global-event", count: 11...11)[...]) else {
                throw invalid(reader, "global event")
            }
            global = event
        }
        return { [self] in
            state.pointee.resumeAddress = resume[0]
            state.pointee.resumeOpaque = resume[1]
            accelerator.sbi?.features.restore(features, hart: index)
            accelerator.sbi?.events.restore(hart: index, masked: masked, local: local, global: global)
        }
    }

    private static func words(_ event: SupervisorEvent) -> [UInt64] {
        [
            event.state.rawValue, event.isPending ? 1 : 0, event.priority, event.isOneShot ? 1 : 0, UInt64(event.hart),
            event.entry, event.argument, event.interruptedSEPC, event.interruptedFlags, event.interruptedA6,
            event.interruptedA7,
        ]
    }

    private func event(_ words: ArraySlice<UInt64>) -> SupervisorEvent? {
        let words = Array(words)
        guard let state = SupervisorEvent.State(rawValue: words[0]), words[1] <= 1, words[2] <= UInt64(UInt32.max),
            words[3] <= 1, words[4] < UInt64(accelerator.harts.count), words[5] & 1 == 0,
            words[8] & ~SupervisorEvent.flags == 0
        else { return nil }
        return SupervisorEvent(
            state: state, isPending: words[1] == 1, priority: words[2], isOneShot: words[3] == 1, hart: Int(words[4]),
            entry: words[5], argument: words[6], interruptedSEPC: words[7], interruptedFlags: words[8],
            interruptedA6: words[9], interruptedA7: words[10])
    }

    private func invalid(_ reader: StateReader, _ what: String) -> VMMError {
        VMMError("section '\(reader.section)' has an invalid state of the SBI's \(what)")
    }
}
