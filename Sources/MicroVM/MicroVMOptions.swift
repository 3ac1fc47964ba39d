import BatonRuntime

/// What `-machine microvm,...` takes besides what all machines take, with QEMU's names and defaults.
struct MicroVMOptions {
    /// `pcie=`: a PCI Express bus. Needs ACPI, by which a guest finds it.
    var hasPCI = false
    /// `acpi=`
    var hasACPI = true
    /// `rtc=`: QEMU has none by default under KVM, and a guest polls its ports for seconds.
    var hasRTC = true
    /// `pit=`
    var hasPIT = true
    /// `pic=`
    var hasPIC = true
    /// `isa-serial=`
    var hasSerial = true
    /// `ioapic2=`, which a guest learns of by ACPI.
    var hasSecondIOAPIC = true
    /// `auto-kernel-cmdline=`: a guest without ACPI is told of virtio-mmio slots by its kernel's command line.
    var extendsCommandLine = true

    static let properties = [
        DeviceProperty("pcie", "OnOffAuto", "a PCI Express bus (auto: off)"),
        DeviceProperty("acpi", "OnOffAuto", "ACPI tables (auto: on)"),
        DeviceProperty("rtc", "OnOffAuto", "an MC146818 clock (auto: on)"),
        DeviceProperty("pit", "OnOffAuto", "an i8254 timer (auto: on)"),
        DeviceProperty("pic", "OnOffAuto", "a pair of i8259 interrupt controllers (auto: on)"),
        DeviceProperty("isa-serial", "bool", "a serial port at 0x3f8 (on)"),
        DeviceProperty("ioapic2", "OnOffAuto", "a second I/O APIC, for 24 virtio-mmio slots in place of 8 (auto: on)"),
        DeviceProperty("auto-kernel-cmdline", "bool", "tell a kernel without ACPI of virtio-mmio devices (on)"),
        DeviceProperty("x-option-roms", "bool", "off: firmware gets no ROMs of ours either way"),
    ]

    /// What a guest sees of them, as `NAME=VALUE`.
    var texts: [String] {
        [
            ("pcie", hasPCI), ("acpi", hasACPI), ("rtc", hasRTC), ("pit", hasPIT), ("pic", hasPIC),
            ("isa-serial", hasSerial), ("ioapic2", hasSecondIOAPIC),
        ].map { "\($0)=\($1 ? "on" : "off")" }
    }

    init(_ machine: MachineConfiguration) throws(VMMError) {
        hasPCI = try machine.onOffAuto("pcie") ?? false
        hasACPI = try machine.onOffAuto("acpi") ?? true
        hasRTC = try machine.onOffAuto("rtc") ?? true
        hasPIT = try machine.onOffAuto("pit") ?? true
        hasPIC = try machine.onOffAuto("pic") ?? true
        hasSecondIOAPIC = (try machine.onOffAuto("ioapic2") ?? true) && hasACPI
        for options in machine.options {
            hasSerial = try options.bool("isa-serial") ?? hasSerial
            extendsCommandLine = try options.bool("auto-kernel-cmdline") ?? extendsCommandLine
            _ = try options.enumeration("x-option-roms", ["off"])
        }
        guard !hasPCI || hasACPI else {
            throw VMMError(
                "machine 'microvm' has no pcie=on with acpi=off",
                hint: "A guest finds the bus by ACPI: leave acpi= out.")
        }
    }
}
