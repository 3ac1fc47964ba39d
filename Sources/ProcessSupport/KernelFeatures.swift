import Glibc
import HarnessSystem

/// What this kernel has.
public enum KernelFeatures {
    /// The version of Landlock; 0 when there is none, or it is switched off.
    public static var landlock: Int { max(0, Int(harness_landlock_version())) }

    /// Whether a pidfd tells how a process has ended whose parent is another (Linux 6.15).
    public static var tellsHowProcessesEnded: Bool { !version.lexicographicallyPrecedes([6, 15]) }

    /// `uname -r` up to the first part that is no number.
    private static var version: [Int] {
        var names = utsname()
        guard uname(&names) == 0 else { return [] }
        let release = withUnsafeBytes(of: names.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        return release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
    }
}
