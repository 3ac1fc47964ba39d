import TestSupport

/// Options for a device of each kind that needs nobody else: what a state can hold.
enum EveryDevice {
    /// - Parameter directory: gets the files and sockets that the devices use.
    static func options(in directory: TemporaryDirectory) throws -> [String] {
        let disk = try directory.writeSparse("disk", size: 1 << 20)
        return [
            "-drive", "file=\(disk),if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
            "-netdev", "stream,id=net,server=on,addr.type=unix,addr.path=\(directory.file("net"))",
            "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
            "-chardev", "socket,id=port,path=\(directory.file("port")),server=on,wait=off",
            "-device", "virtio-serial-pci,id=serial", "-device", "virtconsole,bus=serial.0,chardev=port",
            "-device", "virtio-balloon-pci", "-device", "virtio-scsi-pci", "-device", "pvpanic-pci",
            "-device", "i6300esb", "-device", "pcie-root-port,id=root",
        ]
    }
}
