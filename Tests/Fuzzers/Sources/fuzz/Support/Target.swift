import Glibc

/// One subject of the fuzzer. Each is made in a file of its own in `Targets`.
struct Target {
    var name: String
    /// Bytes of an input at most.
    var longestInput = 4096
    /// Seconds that an input may take: a longer one is a hang.
    var timeLimit = 10
    /// MiB that the process may take.
    var memoryLimit = 2048
    /// Whether inputs may be long from the beginning: otherwise libFuzzer tries short ones first, for long.
    var startsLong = false
    /// What inputs often have in them.
    var words: () throws -> [String] = { [] }
    /// Inputs to begin from.
    var seeds: () throws -> [[UInt8]]
    /// Sets up what inputs are fed to, once for all of them, and gives what takes one. What that leaves behind must not
    /// change what becomes of the next.
    var make: () throws -> ([UInt8]) throws -> Void

    /// For libFuzzer.
    var options: String {
        "-max_len=\(longestInput) -timeout=\(timeLimit) -rss_limit_mb=\(memoryLimit)"
            + (startsLong ? " -len_control=0" : "")
    }

    /// `words`, as libFuzzer's dictionaries have them.
    func dictionary() throws -> String {
        let lines = try words().map { word in
            "\""
                + word.utf8.map { byte in
                    let isPlain = (0x20..<0x7f).contains(byte) && byte != 0x22 && byte != 0x5c
                    let digits = String(byte, radix: 16)
                    return isPlain ? String(Unicode.Scalar(byte)) : "\\x" + (digits.count < 2 ? "0" : "") + digits
                }.joined() + "\"\n"
        }
        // libFuzzer refuses an empty file.
        return "# \(name)\n" + lines.joined()
    }
}

/// Reports a finding: ends the process in a way that libFuzzer keeps the input of.
func found(_ text: String, file: StaticString = #fileID, line: UInt = #line) -> Never {
    fputs("FOUND: \(text) (\(file):\(line))\n", stderr)
    abort()
}

/// Reports a property that does not hold.
func expect(
    _ holds: Bool, _ text: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line
) {
    if !holds { found(text(), file: file, line: line) }
}

/// What a harness cannot go on without.
struct HarnessError: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}
