import Foundation
import TestSupport
import Testing

/// Disk images that are not what a VMM of raw images takes them for.
@Suite struct ImageTests {
    /// Builds the machine, and ends.
    private func start(_ directory: TemporaryDirectory, _ words: [String]) throws -> ChildProcess {
        let process = try ChildProcess(
            [Products.baton, "-nodefaults", "-bios", "none", "-m", "4M"]
                + ["-machine", "virt,dumpdtb=\(directory.file("tree"))"] + words)
        try process.waitForExit()
        return process
    }

    /// A header, or a footer, of each format that is not raw.
    static let formats: [(name: String, offset: Int, magic: [UInt8])] = [
        ("qcow2", 0, [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]), ("qcow", 0, [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1]),
        ("qed", 0, Array("QED\0".utf8)), ("vmdk", 0, Array("KDMV".utf8)), ("vmdk", 0, Array("COWD".utf8)),
        ("vmdk", 0, Array("# Disk DescriptorFile\nversion=1\n".utf8)), ("vmdk", 0, Array("#x\n\r\nversion=2\r\n".utf8)),
        ("vhdx", 0, Array("vhdxfile".utf8)), ("vpc", 0, Array("conectix".utf8)),
        ("vpc", (1 << 20) - 512, Array("conectix".utf8)), ("vdi", 0x40, [0x7f, 0x10, 0xda, 0xbe]),
        ("parallels", 0, Array("WithoutFreeSpace".utf8)), ("parallels", 0, Array("WithouFreSpacExt".utf8)),
        ("luks", 0, Array("LUKS".utf8) + [0xba, 0xbe]), ("bochs", 0, Array("Bochs Virtual HD Image".utf8)),
        ("cloop", 0, Array("#!/bin/sh\n#V2.0 Format\n".utf8)), ("dmg", (1 << 20) - 512, Array("koly".utf8)),
    ]

    @Test(
        "An image of another format is given to a storage daemon unless the command line says raw", arguments: formats)
    func otherFormats(format: (name: String, offset: Int, magic: [UInt8])) throws {
        let directory = try TemporaryDirectory()
        var contents = Data(count: 1 << 20)
        contents.replaceSubrange(format.offset..<format.offset + format.magic.count, with: format.magic)
        let image = try directory.write("image", contents)
        for words in [[image], ["-drive", "file=\(image)"], ["-drive", "file=\(image),readonly=on,if=none,id=d"]] {
            // There is nothing behind the magic.
            let process = try start(directory, words)
            #expect(try process.waitForExit() == .status(1))
            #expect(
                process.errors.contains(
                    "looks like an image of the format \(format.name), as no format= says otherwise")
                    || process.errors.contains("cannot execute 'qemu-storage-daemon'"), "\(process.errors)")
        }
        let raw = try start(directory, ["-drive", "file=\(image),format=raw"])
        #expect(try raw.waitForExit() == .status(0))
        #expect(raw.errors == "")
        let node = try start(directory, ["-blockdev", "driver=file,node-name=f,filename=\(image)"])
        #expect(try node.waitForExit() == .status(0))
        #expect(try Data(contentsOf: URL(fileURLWithPath: image)) == contents)
    }

    @Test(
        "What qemu-img makes is known", .enabled(if: Products.find("qemu-img") != nil, "needs qemu-img"),
        .enabled(if: Products.find("qemu-storage-daemon") != nil, "needs qemu-storage-daemon"),
        arguments: ["qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels", "luks"])
    func imagesOfQEMU(format: String) throws {
        let directory = try TemporaryDirectory()
        let image = directory.file("image")
        let secret = format == "luks" ? ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"] : []
        // Of luks it measures how fast keys are made, which does not always work ("Unable to get accurate CPU usage").
        try eventually("qemu-img makes it") {
            (try? ChildProcess.run(["qemu-img", "create", "-q"] + secret + ["-f", format, image, "4M"])) != nil
        }
        let process = try start(directory, [image])
        guard format == "luks" else {
            #expect(try process.waitForExit() == .status(0), "\(process.errors)")
            #expect(process.errors == "")
            return
        }
        // It needs a key.
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("looks like an image of the format luks"), "\(process.errors)")
    }

    @Test("An image that looks raw is taken, with a warning that says what is restricted")
    func guessedRaw() throws {
        let directory = try TemporaryDirectory()
        for contents in [Data(count: 4096), Data(repeating: 0x23, count: 512), Data("text\nversion=1\n".utf8), Data()] {
            let image = try directory.write("image", contents)
            let process = try start(directory, [image])
            #expect(try process.waitForExit() == .status(0), "\(process.errors)")
            #expect(
                process.errors.contains("Image format was not specified for '\(image)' and probing guessed raw."))
            let readOnly = try start(directory, ["-drive", "file=\(image),readonly=on"])
            #expect(try readOnly.waitForExit() == .status(0))
            #expect(readOnly.errors == "")
        }
    }
}
