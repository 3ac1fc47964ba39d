import Foundation

/// What the VMM is to run, and how to tell whether it ran right.
struct Guest {
    let name: String
    /// The VMM's options for this guest.
    let arguments: [String]
    let model: WorkModel
    /// The image of the guest's disk, if it works on one.
    let disk: DiskImage?
    /// There is a shell at the console.
    let hasShell: Bool

    /// Debian's kernel and installer initrd, with our program and the script that starts it in an archive behind.
    /// Its disk is on virtio-mmio, or on PCI.
    static func debian(files: DebianInstaller.Files, directory: TemporaryDirectory, pci: Bool = false) throws -> Guest {
        let builder = try GuestBuilder()
        let program = directory.file("demo")
        try builder.build(.demo, to: program)
        var archive = CpioArchive()
        archive.addDirectory("baton")
        archive.addFile("baton/init", mode: 0o755, contents: try builder.initScript())
        archive.addFile("baton/demo", mode: 0o755, contents: try Data(contentsOf: URL(fileURLWithPath: program)))
        let module = try Data(contentsOf: URL(fileURLWithPath: files.diskModule))
        archive.addFile("baton/virtio_blk.ko.xz", mode: 0o644, contents: module)

        var initrd = try Data(contentsOf: URL(fileURLWithPath: files.initrd))
        initrd += Data(count: -initrd.count & 3)
        initrd += archive.finished()
        let path = directory.file("initrd")
        try initrd.write(to: URL(fileURLWithPath: path))

        let disk = try DiskImage.create(at: directory.file("disk.img"))
        return Guest(
            name: "Debian's riscv64 kernel",
            arguments: [
                "-kernel", files.kernel, "-initrd", path, "-append", "console=ttyS0 rdinit=/baton/init",
                "-drive", "file=\(disk.path),format=raw,if=none,id=hd", "-device", "virtio-blk-\(pci ? "pci" : "device"),drive=hd",
            ],
            model: DemoModel(), disk: disk, hasShell: true)
    }

    /// Our own bare-metal guest, which needs nothing from the network.
    static func counter(directory: TemporaryDirectory) throws -> Guest {
        let image = directory.file("counter.bin")
        try GuestBuilder().build(.counter, to: image)
        return Guest(
            name: "a bare-metal counting guest", arguments: ["-kernel", image], model: CounterModel(), disk: nil,
            hasShell: false)
    }
}
