import BatonRuntime
import Glibc

/// `@FILE` on the command line stands for the options in a file, so that a VM can be a file, as for `baton@.service`.
///
/// The file has words as a shell has them, without expansions: quotes keep blanks together, `#` at the start of a word
/// begins a comment, and a `\` at the end of a line does nothing. By habit it has an option and its argument a line.
/// What the file says is read at each start: an update with the same command line takes a changed file over.
enum OptionFile {
    /// Bytes of a file, at most.
    private static let limit = 1 << 20
    /// Files in files, at most.
    private static let depth = 8

    /// The arguments, with those of files in their place.
    /// - Throws: an error with the file and line.
    static func expand(_ arguments: [String]) throws(VMMError) -> [String] {
        guard arguments.contains(where: isFile) else { return arguments }
        return try expand(arguments, depth: depth)
    }

    /// `./@FILE` is a disk image with such a name.
    private static func isFile(_ argument: String) -> Bool { argument.hasPrefix("@") && argument.utf8.count > 1 }

    private static func expand(_ arguments: [String], depth: Int) throws(VMMError) -> [String] {
        var result: [String] = []
        var takesArgument = false
        for argument in arguments {
            // What an option takes may begin with anything.
            guard !takesArgument, isFile(argument) else {
                takesArgument = !takesArgument && OptionTable.takesArgument(argument)
                result.append(argument)
                continue
            }
            guard depth > 0 else {
                throw VMMError("\(argument): files of options name each other", hint: "Do they name themselves?")
            }
            result += try expand(try words(String(argument.dropFirst())), depth: depth - 1)
        }
        return result
    }

    private static func words(_ path: String) throws(VMMError) -> [String] {
        let file = try FD.openFile(path, O_RDONLY, kinds: [.regular, .characterDevice, .fifo])
        let bytes = try FD.readAll(file.raw, limit: limit, from: path)
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw VMMError("\(path): not valid UTF-8")
        }
        var words: [String] = []
        for (index, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
            do throws(VMMError) {
                words += try ShellWords.split(withoutComment(line))
            } catch {
                throw error.prefixed("\(path), line \(index + 1)")
            }
        }
        return words
    }

    /// The line as far as a `#` that is neither quoted nor in a word, and without a `\` at the end.
    private static func withoutComment(_ line: Substring) -> String {
        var bytes = Array(line.utf8)
        if bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
        var quote: UInt8?
        var isEscaped = false
        var startsWord = true
        for (index, byte) in bytes.enumerated() {
            defer { startsWord = byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }
            if isEscaped {
                isEscaped = false
            } else if byte == UInt8(ascii: "\\"), quote != UInt8(ascii: "'") {
                isEscaped = true
            } else if quote != nil {
                if byte == quote { quote = nil }
            } else if byte == UInt8(ascii: "'") || byte == UInt8(ascii: "\"") {
                quote = byte
            } else if byte == UInt8(ascii: "#"), startsWord {
                return String(decoding: bytes[..<index], as: UTF8.self)
            }
        }
        if isEscaped { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }
}
