import BatonRuntime
import Glibc

/// The lines of a file of options: of `@FILE` and of `-readconfig`.
enum OptionLines {
    /// Bytes of a file, at most.
    private static let limit = 1 << 20

    /// Reads a file whole. A line ends by a line feed, with or without a carriage return before it.
    /// - Returns: the lines without their ends. The first one is line 1.
    /// - Throws: an error for what is no file, is too long, or is no UTF-8.
    static func read(_ path: String) throws(VMMError) -> [String] {
        let file = try FD.openFile(path, O_RDONLY, kinds: [.regular, .characterDevice, .fifo])
        let bytes = try FD.readAll(file.raw, limit: limit, from: path)
        // Nobody is waited for. A shell's <(COMMAND) is a pipe that has a writer, or what one has written.
        var status = stat()
        if bytes.isEmpty, fstat(file.raw, &status) == 0, FileKind(mode: status.st_mode) == .fifo {
            throw VMMError(
                "\(path): it is a FIFO to which nobody has written", hint: "Write to it first, or name a file.")
        }
        guard String(validating: bytes, as: UTF8.self) != nil else { throw VMMError("\(path): not valid UTF-8") }
        // Bytes, not characters: "\r\n" is one character, which equals no "\n".
        return bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).map { line in
            String(decoding: line.last == UInt8(ascii: "\r") ? line.dropLast() : line, as: UTF8.self)
        }
    }

    /// The place of a line, as errors name it.
    static func place(_ path: String, _ number: Int) -> String { "\(path), line \(number)" }
}
