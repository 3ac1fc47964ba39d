import BatonBase
import Glibc

/// Formats of disk images that are no raw bytes, told by their magic, as QEMU's probing does.
///
/// The VMM itself knows raw images only, and leaves others to a storage daemon. One that is taken for raw by mistake has its header, and with it all of it,
/// overwritten by the guest; and a raw image that a guest has made look like another format would be opened as that
/// by the next program that probes it, with whatever file of the host's its header names.
public enum ImageFormat {
    /// All magic is in the first or the last sector.
    static let sectorSize = 512

    /// The format that an open file has; nil for one that can only be raw.
    static func find(in fd: Int32, length: Int) -> String? {
        let tailStart = max(0, length - sectorSize)
        return find(head: read(fd, at: 0)) ?? find(tail: read(fd, at: tailStart))
    }

    /// The format that a file has, by its magic; nil for one that can only be raw, or cannot be read.
    public static func probe(_ path: String) -> String? {
        do throws(VMMError) {
            let file = try FD.openFile(path, O_RDONLY, kinds: [.regular, .blockDevice])
            return find(in: file.raw, length: max(0, Int(lseek(file.raw, 0, SEEK_END))))
        } catch {
            return nil
        }
    }

    /// Drivers of images that are one file: of vmdk, an image may be many.
    private static let ofOneFile: Set<String> = [
        "raw", "file", "host_device", "qcow2", "qcow", "qed", "vhdx", "vpc", "vdi", "parallels", "luks", "bochs",
        "cloop",
        "dmg",
    ]

    /// Whether who writes to an image writes to its own file only. Others that it names (backing files) are read.
    /// - Parameter driver: QEMU's block driver.
    public static func isWrittenAlone(_ path: String, _ driver: String) -> Bool {
        guard ofOneFile.contains(driver) else { return false }
        guard driver == "qcow2" else { return true }
        guard let file = try? FD.openFile(path, O_RDONLY, kinds: [.regular, .blockDevice]) else { return true }
        // Version 3 has incompatible features at 72, the third of which is a data file (docs/interop/qcow2.rst).
        let head = read(file.raw, at: 0)
        return head.count < 80 || head[7] < 3 || head[79] & 4 == 0
    }

    private static func read(_ fd: Int32, at offset: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: sectorSize) { buffer, count in
            count = max(0, retryingInterrupts { pread(fd, buffer.baseAddress, sectorSize, off_t(offset)) })
        }
    }

    /// The format that the first sector shows.
    static func find(head: [UInt8]) -> String? {
        for (name, offset, magic) in heads where head.dropFirst(offset).starts(with: magic) { return name }
        return isVMDKDescriptor(head) ? "vmdk" : nil
    }

    /// The format that the last sector shows: some have their header at the end.
    static func find(tail: [UInt8]) -> String? {
        for (name, magic) in tails where tail.starts(with: magic) { return name }
        return nil
    }

    private static let heads: [(name: String, offset: Int, magic: [UInt8])] = [
        ("qcow2", 0, [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 2]), ("qcow2", 0, [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]),
        ("qcow", 0, [0x51, 0x46, 0x49, 0xfb]), ("qed", 0, Array("QED\0".utf8)),
        ("vmdk", 0, Array("KDMV".utf8)), ("vmdk", 0, Array("COWD".utf8)),
        ("vhdx", 0, Array("vhdxfile".utf8)), ("vpc", 0, Array("conectix".utf8)),
        ("vdi", 0x40, [0x7f, 0x10, 0xda, 0xbe]),
        ("parallels", 0, Array("WithoutFreeSpace".utf8)), ("parallels", 0, Array("WithouFreSpacExt".utf8)),
        ("luks", 0, Array("LUKS".utf8) + [0xba, 0xbe]),
        ("bochs", 0, Array("Bochs Virtual HD Image".utf8)),
        ("cloop", 0, Array("#!/bin/sh\n#V2.0 Format\n".utf8)),
    ]
    private static let tails: [(name: String, magic: [UInt8])] = [
        ("vpc", Array("conectix".utf8)), ("dmg", Array("koly".utf8)),
    ]

    /// A VMDK's text, which names the files with its contents: comments and empty lines, then `version=N`.
    private static func isVMDKDescriptor(_ head: [UInt8]) -> Bool {
        if head.starts(with: Array("# Disk DescriptorFile".utf8)) { return true }
        for line in head.split(separator: 10) {
            let text = line.last == 13 ? line.dropLast() : line
            if text.first == UInt8(ascii: "#") || text.allSatisfy({ $0 == 32 }) { continue }
            return (1...3).contains { text.elementsEqual("version=\($0)".utf8) }
        }
        return false
    }
}
