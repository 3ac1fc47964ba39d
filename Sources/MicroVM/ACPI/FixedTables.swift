import BatonRuntime

/// The tables that are no AML (ACPI specification 6.5, 5.2).
extension ACPIConfiguration {
    /// Where the FADT's pointers to the DSDT are: 4 bytes and 8.
    static let dsdtPointer = 40
    static let extendedDSDTPointer = 140

    /// FADT of ACPI 5: hardware reduced, so all that there is are the registers for sleep and reset.
    var fadt: ACPITable {
        // Offsets in the table.
        let (century, bootFlags, flags, resetRegister, resetValue) = (108, 109, 112, 116, 128)
        let (sleepControl, sleepStatus, size) = (244, 256, 268)
        // No VGA; no keyboard controller either, whose flag is not there. A kernel that does not know that there is
        // no clock polls its ports for seconds.
        let (noVGA, noRTC): (UInt16, UInt16) = (1 << 2, 1 << 5)
        let (writeBack, powerButtonIsDevice, sleepButtonIsDevice): (UInt32, UInt32, UInt32) = (1, 1 << 4, 1 << 5)
        let (hasResetRegister, isHardwareReduced): (UInt32, UInt32) = (1 << 10, 1 << 20)

        var body = [UInt8](repeating: 0, count: size - ACPITable.headerSize)
        func put(_ bytes: [UInt8], _ offset: Int) {
            let start = offset - ACPITable.headerSize
            body.replaceSubrange(start..<start + bytes.count, with: bytes)
        }
        // Where the clock has the century; without it a kernel guesses that from the year.
        if hasRTC { put([UInt8(CMOSIndex.century)], century) }
        put(littleEndianBytes(noVGA | (hasRTC ? 0 : noRTC)), bootFlags)
        put(
            littleEndianBytes(
                writeBack | powerButtonIsDevice | sleepButtonIsDevice | hasResetRegister | isHardwareReduced), flags)
        put(genericAddress(MemoryMap.gedRegisters + GenericEventDevice.resetRegister), resetRegister)
        put([GenericEventDevice.resetValue], resetValue)
        put(genericAddress(MemoryMap.gedRegisters + GenericEventDevice.sleepControl), sleepControl)
        put(genericAddress(MemoryMap.gedRegisters + GenericEventDevice.sleepStatus), sleepStatus)
        return ACPITable("FACP", revision: 5, body: body)
    }

    /// MADT: CPUs and interrupt controllers.
    var madt: ACPITable {
        let enabled: UInt32 = 1
        let allCPUs: UInt32 = 0xffff_ffff
        // Local APICs have ids of 8 bits, of which 255 means all.
        let lastAPIC: UInt32 = 254
        let nmiPin: UInt8 = 1
        let noFlags: UInt16 = 0
        let levelActiveHigh: UInt16 = 0b1101

        var body = littleEndianBytes(UInt32(MemoryMap.localAPIC)) + littleEndianBytes(hasPIC ? 1 as UInt32 : 0)
        for (index, id) in apicIDs.enumerated() {
            if id <= lastAPIC {
                body += [0, 8, UInt8(truncatingIfNeeded: index), UInt8(id)] + littleEndianBytes(enabled)
            } else {
                body += [9, 16, 0, 0] + littleEndianBytes(id) + littleEndianBytes(enabled)
                body += littleEndianBytes(UInt32(index))
            }
        }
        for (index, address) in [MemoryMap.ioapic, MemoryMap.ioapic2].prefix(interrupts.ioapicCount).enumerated() {
            body += [1, 12, UInt8(index), 0] + littleEndianBytes(UInt32(address))
            body += littleEndianBytes(UInt32(index * MemoryMap.ioapicPins))
        }
        func override(_ source: Int, _ interrupt: Int, _ flags: UInt16) -> [UInt8] {
            [2, 10, 0, UInt8(source)] + littleEndianBytes(UInt32(interrupt)) + littleEndianBytes(flags)
        }
        if hasTimerOverride { body += override(0, 2, noFlags) }
        if let base = pci?.interruptBase, base < 16 {
            // Else a kernel takes the first 16 to be ISA's: edge triggered.
            for interrupt in base..<min(base + 4, 16) { body += override(interrupt, interrupt, levelActiveHigh) }
        }
        if apicIDs.contains(where: { $0 > lastAPIC }) {
            body += [10, 12] + littleEndianBytes(noFlags) + littleEndianBytes(allCPUs) + [nmiPin, 0, 0, 0]
        } else {
            body += [4, 6, 0xff] + littleEndianBytes(noFlags) + [nmiPin]
        }
        return ACPITable("APIC", revision: 3, body: body)
    }

    /// MCFG: where PCI's configuration space is. Nil without PCI.
    var mcfg: ACPITable? {
        guard pci != nil else { return nil }
        let segment: UInt16 = 0
        let (firstBus, lastBus): (UInt8, UInt8) = (0, UInt8(MemoryMap.pciConfigurationSize >> 20 - 1))
        let reserved = [UInt8](repeating: 0, count: 8)
        var body = reserved + littleEndianBytes(MemoryMap.pciConfiguration) + littleEndianBytes(segment)
        body += [firstBus, lastBus, 0, 0, 0, 0]
        return ACPITable("MCFG", revision: 1, body: body)
    }
}
