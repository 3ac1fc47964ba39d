import BatonRuntime

/// The registers of an interrupt domain (RISC-V AIA 1.0, 4.5 and 4.8).
extension APLIC {
    private enum Register {
        static let domainConfig: UInt64 = 0
        static let sourceConfig: UInt64 = 0x0004
        static let machineAddress: UInt64 = 0x1bc0
        static let supervisorAddress: UInt64 = 0x1bc8
        static let setPending: UInt64 = 0x1c00
        static let setPendingNumber: UInt64 = 0x1cdc
        static let input: UInt64 = 0x1d00
        static let clearPendingNumber: UInt64 = 0x1ddc
        static let setEnabled: UInt64 = 0x1e00
        static let setEnabledNumber: UInt64 = 0x1edc
        static let clearEnabled: UInt64 = 0x1f00
        static let clearEnabledNumber: UInt64 = 0x1fdc
        static let setPendingLittle: UInt64 = 0x2000
        static let setPendingBig: UInt64 = 0x2004
        static let generate: UInt64 = 0x3000
        static let target: UInt64 = 0x3004
        static let idc: UInt64 = 0x4000
        static let idcSize: UInt64 = 32
        /// Words of a bit array of 1024 sources.
        static let arraySize: UInt64 = 0x80
    }

    private enum DomainConfig {
        static let fixed: UInt32 = 0x8000_0000
        static let enable: UInt32 = 1 << 8
        static let messages: UInt32 = 1 << 2
    }

    /// The index of a register in an array of one a source.
    private func source(_ offset: UInt64, _ base: UInt64) -> Int? {
        guard offset >= base, offset < base + 4 * 1023 else { return nil }
        return Int((offset - base) / 4) + 1
    }

    /// The index of a word in an array of bits.
    private func word(_ offset: UInt64, _ base: UInt64) -> Int? {
        guard offset >= base, offset < base + Register.arraySize else { return nil }
        return Int((offset - base) / 4)
    }

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 4 && offset % 4 == 0 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        if offset == Register.domainConfig {
            return UInt64(
                DomainConfig.fixed | (isEnabled ? DomainConfig.enable : 0) | (sendsMessages ? DomainConfig.messages : 0)
            )
        }
        if let source = source(offset, Register.sourceConfig) {
            return source <= APLIC.maxSource ? UInt64(sourceConfig[source]) : 0
        }
        if let source = source(offset, Register.target) {
            return source <= APLIC.maxSource ? UInt64(targets[source]) : 0
        }
        for (base, words) in [(Register.setPending, pending), (Register.setEnabled, enabled)] {
            if let word = word(offset, base) { return word < APLIC.words ? UInt64(words[word]) : 0 }
        }
        if let word = word(offset, Register.input) {
            guard word < APLIC.words else { return 0 }
            var bits: UInt32 = 0
            for source in max(1, word * 32)..<word * 32 + 32 where source <= APLIC.maxSource && rectified(source) {
                bits |= APLIC.bit(source)
            }
            return UInt64(bits)
        }
        switch offset {
        case Register.machineAddress where hasAddresses: return UInt64(messageAddress.machineLow)
        case Register.machineAddress + 4 where hasAddresses: return UInt64(messageAddress.machineHigh)
        case Register.supervisorAddress where hasAddresses: return UInt64(messageAddress.supervisorLow)
        case Register.supervisorAddress + 4 where hasAddresses: return UInt64(messageAddress.supervisorHigh)
        case Register.generate: return UInt64(generated)
        case Register.idc...: return readIDC(offset - Register.idc)
        default: return 0
        }
    }

    /// Only the root has them, and only where messages are sent.
    private var hasAddresses: Bool { child != nil && sendsMessages }

    private func readIDC(_ offset: UInt64) -> UInt64 {
        let hart = Int(offset / Register.idcSize)
        guard !sendsMessages, hart < hartCount else { return 0 }
        switch offset % Register.idcSize {
        case 0: return idcs[hart].delivers ? 1 : 0
        case 4: return idcs[hart].forced ? 1 : 0
        case 8: return UInt64(idcs[hart].threshold)
        case 0x18: return UInt64(top(hart))
        case 0x1c: return UInt64(claim(hart))
        default: return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        write(offset, UInt32(truncatingIfNeeded: value))
        update()
    }

    private func write(_ offset: UInt64, _ value: UInt32) {
        if offset == Register.domainConfig {
            isEnabled = value & DomainConfig.enable != 0
            return
        }
        if let source = source(offset, Register.sourceConfig) {
            if source <= APLIC.maxSource { configure(source, value) }
            return
        }
        if let source = source(offset, Register.target) {
            if source <= APLIC.maxSource { setTarget(source, value) }
            return
        }
        for (base, set) in [
            (Register.setPending, { self.setPending($0, true) }), (Register.input, { self.setPending($0, false) }),
            (Register.setEnabled, { self.setEnabled($0, true) }),
            (Register.clearEnabled, { self.setEnabled($0, false) }),
        ] as [(UInt64, (Int) -> Void)] {
            guard let word = word(offset, base) else { continue }
            for source in word * 32..<word * 32 + 32 where value & APLIC.bit(source) != 0 { each(UInt32(source), set) }
            return
        }
        switch offset {
        case Register.setPendingNumber, Register.setPendingLittle: each(value) { setPending($0, true) }
        case Register.setPendingBig: each(value.byteSwapped) { setPending($0, true) }
        case Register.clearPendingNumber: each(value) { setPending($0, false) }
        case Register.setEnabledNumber: each(value) { setEnabled($0, true) }
        case Register.clearEnabledNumber: each(value) { setEnabled($0, false) }
        case Register.generate:
            guard sendsMessages else { return }
            generated = value & 0xfffc_07ff
            send(hart: value >> 18, identity: value & 0x7ff)
        case Register.machineAddress...Register.supervisorAddress + 4: writeAddress(offset, value)
        case Register.idc...: writeIDC(offset - Register.idc, value)
        default: Log.guestError("\(stateName): write of the register at \(Hex(offset))")
        }
    }

    /// Does something to a source that there is.
    private func each(_ number: UInt32, _ body: (Int) -> Void) {
        guard number > 0, number <= UInt32(APLIC.maxSource) else { return }
        body(Int(number))
    }

    private func writeAddress(_ offset: UInt64, _ value: UInt32) {
        guard hasAddresses, !messageAddress.isLocked else {
            return Log.guestError("\(stateName): write of the message addresses at \(Hex(offset))")
        }
        switch offset {
        case Register.machineAddress: messageAddress.machineLow = value
        case Register.machineAddress + 4: messageAddress.machineHigh = value & 0x9f77_ffff
        case Register.supervisorAddress: messageAddress.supervisorLow = value
        default: messageAddress.supervisorHigh = value & 0x0070_0fff
        }
    }

    private func writeIDC(_ offset: UInt64, _ value: UInt32) {
        let hart = Int(offset / Register.idcSize)
        guard !sendsMessages, hart < hartCount else {
            return Log.guestError("\(stateName): write of delivery control at \(Hex(offset))")
        }
        switch offset % Register.idcSize {
        case 0: idcs[hart].delivers = value & 1 != 0
        case 4: idcs[hart].forced = value & 1 != 0
        case 8: idcs[hart].threshold = value & 0xff
        default: Log.guestError("\(stateName): write of the register at \(Hex(offset)) of delivery control")
        }
    }
}
