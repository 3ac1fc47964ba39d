import Foundation
import ProcessSupport

/// What a process has in memory beside its guest's RAM, in KiB.
struct ProcessMemory {
    /// What it shares with others is divided among them.
    private(set) var proportional = 0
    /// What it shares with nobody.
    private(set) var own = 0

    /// - Parameter ram: the file that is the guest's RAM, which is not counted.
    init(pid: pid_t, besides ram: String) throws {
        var counts = true
        for line in try ProcFile.text("/proc/\(pid)/smaps").split(separator: "\n") {
            let words = line.split(separator: " ")
            guard let name = words.first else { continue }
            if !name.hasSuffix(":") {
                // A mapping's first line: addresses, permissions, offset, device, inode, file.
                counts = words.last.map { $0 != ram } ?? true
            } else if counts, words.count > 1, let size = Int(words[1]) {
                if name == "Pss:" { proportional += size }
                if name == "Private_Clean:" || name == "Private_Dirty:" { own += size }
            }
        }
    }
}
