import Foundation
import ProcessSupport

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
    /// Its disk is on virtio-mmio, or on PCI. `append` is for the kernel's command line.
    static func debian(
        _ machine: GuestMachine, files: DebianInstaller.Files, directory: TemporaryDirectory, pci: Bool = false,
        append: String = ""
    ) throws -> Guest {
        let builder = try GuestBuilder()
        let program = directory.file("demo")
        try builder.build(.demo, for: machine, to: program)
        let path = try debianInitrd(
            files: files, script: try builder.initScript("demo"), program: program, directory: directory)

        let disk = try DiskImage.create(at: directory.file("disk.img"))
        return Guest(
            name: "Debian's \(machine.architecture) kernel",
            arguments: [
                "-kernel", files.kernel, "-initrd", path, "-append",
                "console=ttyS0 rdinit=/baton/init" + (append.isEmpty ? "" : " \(append)"),
                "-drive", "file=\(disk.path),format=raw,if=none,id=hd",
                "-device", "virtio-blk-\(pci ? "pci" : "device"),drive=hd",
            ],
            model: DemoModel(), disk: disk, hasShell: true)
    }

    /// The installer's initrd with an archive behind it, of our script in the installer's place, the module that
    /// the initrd lacks, and a program for the script.
    static func debianInitrd(
        files: DebianInstaller.Files, script: Data, program: String? = nil, directory: TemporaryDirectory
    ) throws -> String {
        func contents(_ path: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: path)) }
        var archive = CpioArchive()
        archive.addDirectory("baton")
        archive.addFile("baton/init", mode: 0o755, contents: script)
        if let program { archive.addFile("baton/demo", mode: 0o755, contents: try contents(program)) }
        archive.addFile("baton/virtio_blk.ko.xz", mode: 0o644, contents: try contents(files.diskModule))

        var initrd = try contents(files.initrd)
        initrd += Data(count: -initrd.count & 3)
        initrd += archive.finished()
        let path = directory.file("initrd")
        try initrd.write(to: URL(fileURLWithPath: path))
        return path
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
