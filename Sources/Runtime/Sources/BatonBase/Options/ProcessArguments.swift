import CBaton

/// The command line of this process, as `main` gets it: not from /proc, which need not be there.
public enum ProcessArguments {
    /// All of it, the program's name first.
    /// - Throws: an error for an argument that is not UTF-8: with other characters in its place it would name another
    ///   file.
    public static func all() throws(VMMError) -> [String] {
        var result: [String] = []
        for index in 0..<cbaton_argument_count() {
            guard let bytes = cbaton_argument(index) else { break }
            guard let text = String(validatingCString: bytes) else {
                throw VMMError("argument \(index) is not valid UTF-8: '\(String(cString: bytes))'")
            }
            result.append(text)
        }
        return result
    }
}
