import BatonRuntime
import Firmware

/// The DSDT: the board's devices, with the names and identifiers of QEMU's hw/i386/acpi-microvm.c.
extension ACPIConfiguration {
    var dsdt: ACPITable {
        var devices = [firmwareConfiguration]
        if hasSerial { devices.append(serial) }
        if hasRTC { devices.append(clock) }
        devices += [eventDevice, powerButton]
        if let panicPort { devices.append(panicDevice(panicPort)) }
        devices += virtioSlots.map(virtioDevice)
        if let pci { devices.append(pci.hostBridge) }
        let powerOff = AML.package([
            .integer(Int(GenericEventDevice.sleepTypeOff)), .integer(0), .integer(0), .integer(0),
        ])
        let body = AML.join([.scope("\\_SB", devices), .name("\\_S5", powerOff)])
        // From revision 2 on integers have 64 bits.
        return ACPITable("DSDT", revision: 2, body: body)
    }

    private var firmwareConfiguration: AML {
        let presentButHidden = 0xb
        return .device(
            "FWCF",
            [
                .name("_HID", .string("QEMU0002")), .name("_STA", .integer(presentButHidden)),
                .name(
                    "_CRS", .resources([.ports(MemoryMap.firmwareConfigurationPort, count: FwCfg.Layout.ports.size)])),
            ])
    }

    private var serial: AML {
        let presentAndShown = 0xf
        return .device(
            "COM1",
            [
                .name("_HID", .eisaID("PNP0501")), .name("_UID", .integer(1)), .name("_STA", .integer(presentAndShown)),
                .name(
                    "_CRS",
                    .resources([
                        .ports(MemoryMap.serialPort, count: 8), .isaInterrupt(MemoryMap.serialInterrupt),
                    ])),
            ])
    }

    private var clock: AML {
        // A PC's has eight ports, of which two are used.
        .device(
            "RTC",
            [
                .name("_HID", .eisaID("PNP0B00")),
                .name(
                    "_CRS",
                    .resources([.ports(MemoryMap.rtcPort, count: 8), .isaInterrupt(MemoryMap.rtcInterrupt)])),
            ])
    }

    /// pvpanic, by which a guest tells of its panic.
    private func panicDevice(_ port: UInt64) -> AML {
        let presentAndShown = 0xf
        return .device(
            "PEVT",
            [
                .name("_HID", .string("QEMU0001")), .name("_STA", .integer(presentAndShown)),
                .name("_CRS", .resources([.ports(port, count: 1)])),
            ])
    }

    /// The generic event device: its interrupt runs `_EVT`, which reads what has happened (and so clears it).
    private var eventDevice: AML {
        let event = AML.integer(Int(GenericEventDevice.powerButton))
        let isPressed = AML.equal(.and(.local(0), event), event)
        let deviceChecks = 0x80
        return .device(
            "GED",
            [
                .name("_HID", .string("ACPI0013")), .name("_UID", .string("GED")),
                .name("_CRS", .resources([.interrupt(MemoryMap.gedInterrupt, isEdge: true)])),
                .memoryRegion("EREG", at: MemoryMap.ged, length: Int(MemoryMap.gedSize)),
                .doubleWordField(region: "EREG", name: "ESEL"),
                .method(
                    "_EVT", arguments: 1, isSerialized: true,
                    [
                        .store(.path("ESEL"), in: .local(0)),
                        .ifTrue(isPressed, [.notify(.path("PWRB"), deviceChecks)]),
                    ]),
            ])
    }

    private var powerButton: AML {
        .device("PWRB", [.name("_HID", .string("PNP0C0C")), .name("_UID", .integer(0))])
    }

    private func virtioDevice(_ slot: Int) -> AML {
        let address = MemoryMap.virtioSlot(slot)
        return .device(
            slot < 10 ? "VR0\(slot)" : "VR\(slot)",
            [
                .name("_HID", .string("LNRO0005")), .name("_UID", .integer(slot)),
                // Its DMA sees what CPUs have written.
                .name("_CCA", .integer(1)),
                .name(
                    "_CRS",
                    .resources([
                        .memory(address, size: MemoryMap.virtioStride), .interrupt(interrupts.virtioBase + slot),
                    ])),
            ])
    }
}
