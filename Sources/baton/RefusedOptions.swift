import BatonRuntime

/// Options and devices of QEMU's that Baton does not have, each with what comes nearest: who brings a command line from
/// QEMU finds out what to change.
enum RefusedOptions {
    private static let graphics = "There is no graphical display: use a serial console (-serial, -append console=...)."
    private static let sound = "There is no sound."
    private static let usb = "There is no USB: use virtio devices (-device help)."

    private static let options: [String: String] = [
        "icount": "The guest's clock is the host's; -rtc clock=vm stops it with the VM.",
        "acpitable": "The machine's own tables are all that there are.",
        "virtfs": "Use virtiofsd with -chardev socket and -device vhost-user-fs-pci,tag=NAME.",
        "fsdev": "Use virtiofsd with -chardev socket and -device vhost-user-fs-pci,tag=NAME.",
        "usb": usb, "usbdevice": usb,
        "sdl": graphics, "vnc": graphics,
        "spice": graphics, "curses": graphics,
        "g": graphics, "full-screen": graphics,
        "audio": sound, "audiodev": sound,
        "parallel": "There is no parallel port: use -serial.",
        "loadvm": "Use cpr-save in the mode reboot, and cpr-load.",
        "writeconfig": "QEMU has it no more; -readconfig reads such a file.",
        "tpmdev": "There is no TPM.",
        "sd": "Use -drive file=FILE,if=virtio.",
        "mtdblock": "Use -drive file=FILE,if=virtio.",
        "fda": "Use -drive file=FILE,if=virtio.",
        "fdb": "Use -drive file=FILE,if=virtio.",
        "pflash": "Use -drive file=FILE,if=pflash,format=raw.",
        "semihosting": "Use a serial console.",
        "semihosting-config": "Use a serial console.",
        "seed": "The guest's random numbers are the host kernel's.",
    ]

    /// By what names of models begin with.
    private static let devices: KeyValuePairs = [
        "scsi-block": "scsi-hd", "scsi-generic": "scsi-hd",
        "nvme": "virtio-blk-pci, or vfio-pci for the host's",
        "ide-": "virtio-blk-pci", "ahci": "virtio-blk-pci", "usb-storage": "virtio-blk-pci",
        "sd-card": "virtio-blk-pci",
        "virtio-gpu": "virtio-serial-pci with virtconsole, as there is no display",
        "virtio-vga": "virtio-serial-pci with virtconsole, as there is no display",
        "VGA": "virtio-serial-pci with virtconsole, as there is no display",
        "bochs-display": "virtio-serial-pci with virtconsole, as there is no display",
        "ramfb": "virtio-serial-pci with virtconsole, as there is no display",
        "virtio-keyboard": "a console (-serial): there is no display that would need it",
        "virtio-mouse": "a console (-serial): there is no display that would need it",
        "virtio-tablet": "a console (-serial): there is no display that would need it",
        "qemu-xhci": "virtio devices, as there is no USB", "nec-usb-xhci": "virtio devices, as there is no USB",
        "usb-": "virtio devices, as there is no USB", "e1000": "virtio-net-pci", "rtl8139": "virtio-net-pci",
        "igb": "virtio-net-pci", "vmxnet3": "virtio-net-pci", "virtio-9p": "vhost-user-fs-pci with virtiofsd",
        "pci-bridge": "pcie-root-port", "pcie-pci-bridge": "pcie-root-port", "ioh3420": "pcie-root-port",
        "x3130-upstream": "pcie-root-port", "xio3130-downstream": "pcie-root-port", "pxb": "pcie-root-port",
        "ib700": "i6300esb", "diag288": "i6300esb", "pvpanic": "pvpanic-pci, or pvpanic on the machine microvm",
        "intel-hda": "none: there is no sound",
        "virtio-sound": "none: there is no sound", "virtio-iommu": "none: devices reach all memory",
        "virtio-mem": "-m, as memory cannot be added later", "pc-dimm": "-m, as memory cannot be added later",
    ]

    /// The error for an option that QEMU has; nil for one that nobody has.
    static func error(for name: String) -> VMMError? {
        options[name].map { VMMError("-\(name) is not supported", hint: $0) }
    }

    /// What a device of QEMU's that there is not is best replaced by.
    static func hint(forDevice model: String) -> String? {
        devices.first { model.hasPrefix($0.key) }.map { "Instead of \(model) use: \($0.value)." }
    }
}
