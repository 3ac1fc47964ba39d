import Foundation
import ProcessSupport

/// The memory of a guest that counts: a file in a memory file system, where there is one, and `CounterPage` in it.
struct CountingMemory {
    let size: String
    let image: String
    let page: CounterPage

    private static let parent =
        FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()

    /// Memory of which the guest uses little.
    init(size: String, bytes: Int, image: String, used: Int = 0) throws {
        self.size = size
        self.image = image
        page = try CounterPage(path: "\(Self.parent)/baton-bench-\(getpid())", size: bytes, used: used)
    }

    /// Memory of which the guest uses all but the first MiBs; nil where
    /// there is not twice as much.
    init?(size: String, used bytes: Int, image: String) throws {
        var room = statvfs()
        guard statvfs(Self.parent, &room) == 0, Int(room.f_bavail) * Int(room.f_frsize) > bytes * 2,
            let line = try String(contentsOfFile: "/proc/meminfo", encoding: .utf8).split(separator: "\n")
                .first(where: { $0.hasPrefix("MemAvailable:") }),
            let available = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) }),
            available << 10 > bytes * 2
        else { return nil }
        try self.init(size: size, bytes: bytes, image: image, used: bytes - (16 << 20))
    }

    /// What both VMMs are started with.
    func arguments(socket: String) -> [String] {
        [
            "-object", "memory-backend-file,id=ram,size=\(size),share=on,mem-path=\(page.path)", "-m", size,
            "-bios", "none", "-kernel", image, "-nodefaults", "-nographic", "-serial", "null", "-monitor", "none",
            "-qmp", "unix:\(socket),server=on,wait=off",
        ]
    }
}
