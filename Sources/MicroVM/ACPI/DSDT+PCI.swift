/// The PCI host bridge in the DSDT (PCI Firmware Specification 3.2, chapter 4).
extension ACPIConfiguration.PCI {
    private static let slots = 32
    private static let pins = 4

    var hostBridge: AML {
        let buses: ClosedRange<UInt16> = 0...UInt16(MemoryMap.pciConfigurationSize >> 20 - 1)
        var windows: [AML.Resource] = [.busNumbers(buses), .window(memory)]
        if let highMemory { windows.append(.window(highMemory)) }
        return .device(
            "PCI0",
            [
                .name("_HID", .string("PNP0A08")), .name("_CID", .string("PNP0A03")),
                .name("_SEG", .integer(0)), .name("_BBN", .integer(0)), .name("_UID", .integer(0)),
                .name("_CCA", .integer(1)),
                .method("_CBA", arguments: 0, [.returning(.integer(MemoryMap.pciConfiguration))]),
                .name("_CRS", .resources(windows)),
                .name("_PRT", routes),
            ] + links + [
                .name("SUPP", .integer(0)), .name("CTRL", .integer(0)), control, configurationSpace,
            ])
    }

    /// Which interrupt a pin of a slot has: they go round, so that devices share as little as may be.
    private var routes: AML {
        // A route holds for every function of a slot. All routes of a package of 255 elements at most: 128.
        let everyFunction = 0xffff
        var entries: [AML] = []
        for slot in 0..<Self.slots {
            for pin in 0..<Self.pins {
                entries.append(
                    .package([
                        .integer(slot << 16 | everyFunction), .integer(pin), .path("GSI\((slot + pin) % Self.pins)"),
                        .integer(0),
                    ]))
            }
        }
        return .package(entries)
    }

    /// The four interrupts as devices: a bare number in a route would be active low.
    private var links: [AML] {
        (0..<Self.pins).map { pin in
            let interrupt = AML.resources([.interrupt(interruptBase + pin)])
            return .device(
                "GSI\(pin)",
                [
                    .name("_HID", .string("PNP0C0F")), .name("_UID", .integer(pin)), .name("_PRS", interrupt),
                    .name("_CRS", interrupt), .method("_SRS", arguments: 1, []),
                    .method("_DIS", arguments: 0, []),
                ])
        }
    }

    /// `_OSC`, by which the system takes control of PCI Express' own functions: it gets all.
    private var control: AML {
        let functions = 0x1f
        let (unknownUUID, unknownRevision, masked) = (0x4, 0x8, 0x10)
        func fail(_ bit: Int) -> AML { .or(.path("CDW1"), .integer(bit), in: .path("CDW1")) }
        let isPCI = AML.equal(.argument(0), .uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
        return .method(
            "_OSC", arguments: 4, isSerialized: true,
            [
                .createDoubleWordField(.argument(3), at: 0, "CDW1"),
                .ifTrue(
                    isPCI,
                    [
                        .createDoubleWordField(.argument(3), at: 4, "CDW2"),
                        .createDoubleWordField(.argument(3), at: 8, "CDW3"),
                        .store(.path("CDW2"), in: .path("SUPP")), .store(.path("CDW3"), in: .path("CTRL")),
                        .and(.path("CTRL"), .integer(functions), in: .path("CTRL")),
                        .ifTrue(.notEqual(.argument(1), .integer(1)), [fail(unknownRevision)]),
                        .ifTrue(.notEqual(.path("CDW3"), .path("CTRL")), [fail(masked)]),
                        .store(.path("CTRL"), in: .path("CDW3")),
                    ]),
                .otherwise([fail(unknownUUID)]),
                .returning(.argument(3)),
            ])
    }

    /// Linux uses the configuration space only where a device has it reserved.
    private var configurationSpace: AML {
        let range = MemoryMap.pciConfiguration..<MemoryMap.pciConfiguration + MemoryMap.pciConfigurationSize
        return .device("RES0", [.name("_HID", .string("PNP0C02")), .name("_CRS", .resources([.window64(range)]))])
    }
}
