import BatonRuntime

/// Registers `query-pci` and `info pci`.
/// - Parameter bus: the machine's first bus; nil for a machine without PCI.
public func registerPCICommands(vm: VirtualMachine, bus: @escaping () -> PCIBus?) throws(VMMError) {
    let region = QMPType.object(
        name: "PciMemoryRegion",
        members: [
            QMPMember("bar", .int), QMPMember("type", .string), QMPMember("address", .int), QMPMember("size", .int),
            QMPMember("prefetch", .bool, optional: true), QMPMember("mem_type_64", .bool, optional: true),
        ])
    let classInfo = QMPType.object(
        name: "PciDeviceClass", members: [QMPMember("desc", .string, optional: true), QMPMember("class", .int)])
    let identity = QMPType.object(
        name: "PciDeviceId",
        members: [
            QMPMember("device", .int), QMPMember("vendor", .int), QMPMember("subsystem", .int, optional: true),
            QMPMember("subsystem-vendor", .int, optional: true),
        ])
    let range = QMPType.object(
        name: "PciMemoryRange", members: [QMPMember("base", .int), QMPMember("limit", .int)])
    let buses = QMPType.object(
        name: "PciBusInfo",
        members: [
            QMPMember("number", .int), QMPMember("secondary", .int), QMPMember("subordinate", .int),
            QMPMember("io_range", range), QMPMember("memory_range", range), QMPMember("prefetchable_range", range),
        ])
    // The devices behind it are of the same type as itself.
    let bridge = QMPType.object(
        name: "PciBridgeInfo", members: [QMPMember("bus", buses), QMPMember("devices", .array(.any), optional: true)])
    let device = QMPType.object(
        name: "PciDeviceInfo",
        members: [
            QMPMember("bus", .int), QMPMember("slot", .int), QMPMember("function", .int),
            QMPMember("class_info", classInfo), QMPMember("id", identity), QMPMember("irq", .int, optional: true),
            QMPMember("irq_pin", .int), QMPMember("qdev_id", .string), QMPMember("pci_bridge", bridge, optional: true),
            QMPMember("regions", .array(region)),
        ])
    let info = QMPType.object(
        name: "PciInfo", members: [QMPMember("bus", .int), QMPMember("devices", .array(device))])
    try vm.commands.add(
        QMPCommand("query-pci", returns: .array(info)) { _ in
            .array(bus().map { [["bus": 0, "devices": .array($0.functions.map { describe($0, 0) })]] } ?? [])
        })
    try vm.commands.add(
        HMPCommand("info pci", help: "show PCI info") { _ in bus().map { text($0, 0) } ?? "" })
}

/// QEMU's names of classes.
private let classNames: [UInt16: String] = [
    0x0100: "SCSI controller", 0x0101: "IDE controller", 0x0102: "Floppy controller", 0x0103: "IPI controller",
    0x0104: "RAID controller", 0x0106: "SATA controller", 0x0107: "SAS controller", 0x0180: "Storage controller",
    0x0200: "Ethernet controller", 0x0201: "Token Ring controller", 0x0202: "FDDI controller",
    0x0203: "ATM controller", 0x0280: "Network controller", 0x0300: "VGA controller", 0x0301: "XGA controller",
    0x0302: "3D controller", 0x0380: "Display controller", 0x0400: "Video controller", 0x0401: "Audio controller",
    0x0402: "Phone", 0x0403: "Audio controller", 0x0480: "Multimedia controller", 0x0500: "RAM controller",
    0x0501: "Flash controller", 0x0580: "Memory controller", 0x0600: "Host bridge", 0x0601: "ISA bridge",
    0x0604: "PCI bridge", 0x0c03: "USB controller",
]

/// The parts of a function that both commands show.
private struct Summary {
    let vendor, device, classCode, subsystemVendor, subsystem: UInt16
    let irq: UInt8
    let pin: Int

    init(_ function: PCIFunction) {
        let config = function.config
        vendor = config.value(PCIRegister.vendorID)
        device = config.value(PCIRegister.deviceID)
        classCode = config.value(PCIRegister.classCode + 1)
        let isBridge = function is PCIBridge
        subsystemVendor = isBridge ? 0 : config.value(PCIRegister.subsystemVendorID)
        subsystem = isBridge ? 0 : config.value(PCIRegister.subsystemID)
        irq = config.value(PCIRegister.interruptLine)
        pin = function.pin
    }
}

private func describe(_ bridge: PCIBridge) -> JSON {
    func range(_ range: (UInt64, UInt64)) -> JSON { ["base": JSON(range.0), "limit": JSON(range.1)] }
    let (numbers, windows) = (bridge.numbers, bridge.windows)
    var result: JSONObject = [
        "bus": [
            "number": JSON(numbers.primary), "secondary": JSON(numbers.secondary),
            "subordinate": JSON(numbers.subordinate), "io_range": range(windows.io),
            "memory_range": range(windows.memory), "prefetchable_range": range(windows.prefetchable),
        ]
    ]
    if numbers.secondary != 0 {
        result["devices"] = .array(bridge.secondaryBus.functions.map { describe($0, numbers.secondary) })
    }
    return .object(result)
}

private func describe(_ function: PCIFunction, _ bus: Int) -> JSON {
    let summary = Summary(function)
    var classInfo: JSONObject = ["class": JSON(Int(summary.classCode))]
    if let name = classNames[summary.classCode] { classInfo["desc"] = .string(name) }
    var result: JSONObject = [
        "bus": JSON(bus), "slot": JSON(function.slot?.device ?? 0), "function": JSON(function.slot?.function ?? 0),
        "class_info": .object(classInfo),
        "id": [
            "device": JSON(Int(summary.device)), "vendor": JSON(Int(summary.vendor)),
            "subsystem": JSON(Int(summary.subsystem)), "subsystem-vendor": JSON(Int(summary.subsystemVendor)),
        ],
    ]
    if summary.pin > 0 { result["irq"] = JSON(Int(summary.irq)) }
    result["irq_pin"] = JSON(summary.pin)
    result["qdev_id"] = .string(function.id ?? "")
    if let bridge = function as? PCIBridge { result["pci_bridge"] = describe(bridge) }
    result["regions"] = .array(
        function.bars.map { bar in
            var region: JSONObject = [
                "bar": JSON(bar.index), "type": bar.space == .io ? "io" : "memory",
                "address": bar.address.map { JSON($0) } ?? -1, "size": JSON(bar.size),
            ]
            if bar.space != .io {
                region["prefetch"] = .bool(bar.isPrefetchable)
                region["mem_type_64"] = .bool(bar.space == .memory64)
            }
            return .object(region)
        })
    return .object(result)
}

private func text(_ bus: PCIBus, _ number: Int) -> String {
    bus.functions.map { function in
        guard let bridge = function as? PCIBridge else { return text(function, number) }
        return text(function, number) + text(bridge.secondaryBus, bridge.numbers.secondary)
    }.joined()
}

private func text(_ function: PCIFunction, _ number: Int) -> String {
    let summary = Summary(function)
    func padded(_ number: Int, _ width: Int) -> String {
        let digits = String(number)
        return String(repeating: " ", count: max(0, width - digits.utf8.count)) + digits
    }
    func hex(_ value: UInt64, _ width: Int) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }
    let decimal = String(summary.classCode)
    let name =
        classNames[summary.classCode]
        ?? "Class " + String(repeating: "0", count: max(0, 4 - decimal.utf8.count)) + decimal
    var text =
        "  Bus \(padded(number, 2)), device \(padded(function.slot?.device ?? 0, 3)), function \(function.slot?.function ?? 0):\n"
    text += "    \(name): PCI device \(hex(UInt64(summary.vendor), 4)):\(hex(UInt64(summary.device), 4))\n"
    text += "      PCI subsystem \(hex(UInt64(summary.subsystemVendor), 4)):\(hex(UInt64(summary.subsystem), 4))\n"
    if summary.pin > 0 {
        text += "      IRQ \(summary.irq), pin \(["A", "B", "C", "D"][(summary.pin - 1) % 4])\n"
    }
    if let bridge = function as? PCIBridge {
        let (numbers, windows) = (bridge.numbers, bridge.windows)
        text += "      BUS \(numbers.primary).\n      secondary bus \(numbers.secondary).\n"
        text += "      subordinate bus \(numbers.subordinate).\n"
        text += "      IO range [0x\(hex(windows.io.0, 4)), 0x\(hex(windows.io.1, 4))]\n"
        text += "      memory range [0x\(hex(windows.memory.0, 8)), 0x\(hex(windows.memory.1, 8))]\n"
        text +=
            "      prefetchable memory range [0x\(hex(windows.prefetchable.0, 8)), "
            + "0x\(hex(windows.prefetchable.1, 8))]\n"
    }
    for bar in function.bars {
        let start = bar.address ?? UInt64.max
        let end = bar.address.map { $0 + bar.size - 1 } ?? bar.size - 2
        text +=
            bar.space == .io
            ? "      BAR\(bar.index): I/O at 0x\(hex(start, 4)) [0x\(hex(end, 4))].\n"
            : "      BAR\(bar.index): \(bar.space == .memory64 ? 64 : 32) bit"
                + "\(bar.isPrefetchable ? " prefetchable" : "") memory at 0x\(hex(start, 8)) [0x\(hex(end, 8))].\n"
    }
    return text + "      id \"\(function.id ?? "")\"\n"
}
