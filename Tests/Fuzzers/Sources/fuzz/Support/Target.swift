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
    /// Inputs to begin from.
    var seeds: () throws -> [[UInt8]]
    /// Sets up what inputs are fed to, once for all of them, and gives what takes one. What that leaves behind must not
    /// change what becomes of the next.
    var make: () throws -> ([UInt8]) throws -> Void
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
