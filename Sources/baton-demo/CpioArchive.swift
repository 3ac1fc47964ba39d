import Foundation

/// A cpio archive in the "newc" format, as Linux takes it for an initrd
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct CpioArchive {
    private var bytes = Data()
    private var inode = 1

    mutating func addDirectory(_ path: String) { add(path, mode: 0o040755, contents: Data()) }

    mutating func addFile(_ path: String, mode: Int, contents: Data) {
        add(path, mode: 0o100000 | mode, contents: contents)
    }

    /// The archive with its end mark. May follow another archive, compressed or not, from a multiple of 4 bytes on.
    func finished() -> Data {
        var archive = self
        archive.add("TRAILER!!!", mode: 0, contents: Data())
        return archive.bytes
    }

    private mutating func add(_ path: String, mode: Int, contents: Data) {
        let name = Data(path.utf8)
        // inode, mode, uid, gid, links, mtime, size, 2 x device, 2 x rdev, length of the name with its NUL, checksum
        let fields = [inode, mode, 0, 0, 1, 0, contents.count, 0, 0, 0, 0, name.count + 1, 0]
        inode += 1
        bytes += Data("070701".utf8)
        for field in fields { bytes += Data(String(format: "%08X", field).utf8) }
        bytes += name + [0]
        pad()
        bytes += contents
        pad()
    }

    private mutating func pad() {
        while bytes.count % 4 != 0 { bytes.append(0) }
    }
}
