import Foundation

/// A peer to compare with: qemu-system-riscv64 with cpr-exec, which QEMU 10.2
/// brought. The installed one, or what `make bench` has put into the cache.
public enum QEMU {
    /// What to execute, before the options; nil when there is none.
    public static let command: [String]? = {
        let program = "qemu-system-riscv64"
        var candidates: [[String]] = Products.find(program).map { [[$0]] } ?? []
        let root = "\(Products.repository)/.cache/qemu"
        let libraries = "\(root)/usr/lib"
        for name in (try? FileManager.default.contentsOfDirectory(atPath: libraries)) ?? [] {
            let files = (try? FileManager.default.contentsOfDirectory(atPath: "\(libraries)/\(name)")) ?? []
            guard files.contains("libc.so.6"), let loader = files.first(where: { $0.hasPrefix("ld-linux-") }) else {
                continue
            }
            candidates.append([
                "\(libraries)/\(name)/\(loader)", "--library-path", "\(libraries)/\(name)",
                "\(root)/usr/bin/\(program)",
                "-L", "\(root)/usr/share/qemu",
            ])
        }
        return candidates.first { hasCprExec($0) }
    }()

    private static func hasCprExec(_ command: [String]) -> Bool {
        guard let process = try? ChildProcess(command + ["-version"]), (try? process.waitForExit()) == .status(0) else {
            return false
        }
        let version = process.output.split(separator: " ").first { $0.first?.isNumber == true } ?? ""
        let numbers = version.split(separator: ".").compactMap { Int($0) }
        return numbers.count >= 2 && (numbers[0], numbers[1]) >= (10, 2)
    }
}
