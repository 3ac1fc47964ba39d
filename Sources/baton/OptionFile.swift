import BatonRuntime

/// `@FILE` on the command line stands for the options in a file, so that a VM can be a file, as for `baton@.service`.
///
/// The file has words as a shell has them, without expansions: quotes keep blanks together, `#` at the start of a word
/// begins a comment, and a `\` at the end of a line does nothing. By habit it has an option and its argument a line.
/// What the file says is read at each start: an update with the same command line takes a changed file over.
enum OptionFile {
    /// A word of the command line, or of a file that it names.
    struct Word {
        var text: String
        /// The file and line where it stands; nil for the command line itself.
        var place: String?
    }

    /// Files in files, at most.
    private static let depth = 8

    /// The arguments, with those of files in their place.
    /// - Throws: an error with the file and line.
    static func expand(_ arguments: [String]) throws(VMMError) -> [Word] {
        let words = arguments.map { Word(text: $0) }
        return arguments.contains(where: isFile) ? try expand(words, depth: depth) : words
    }

    /// `./@FILE` is a disk image with such a name.
    private static func isFile(_ argument: String) -> Bool { argument.hasPrefix("@") && argument.utf8.count > 1 }

    private static func expand(_ words: [Word], depth: Int) throws(VMMError) -> [Word] {
        var result: [Word] = []
        var takesArgument = false
        for word in words {
            // What an option takes may begin with anything.
            guard !takesArgument, isFile(word.text) else {
                takesArgument = !takesArgument && OptionTable.takesArgument(word.text)
                result.append(word)
                continue
            }
            guard depth > 0 else {
                throw VMMError("\(word.text): files of options name each other", hint: "Do they name themselves?")
            }
            do throws(VMMError) {
                result += try expand(try OptionFile.words(String(word.text.dropFirst())), depth: depth - 1)
            } catch {
                throw word.place.map { error.prefixed($0) } ?? error
            }
        }
        return result
    }

    private static func words(_ path: String) throws(VMMError) -> [Word] {
        var words: [Word] = []
        for (index, line) in try OptionLines.read(path).enumerated() {
            let place = OptionLines.place(path, index + 1)
            do throws(VMMError) {
                words += try ShellWords.split(withoutComment(line)).map { Word(text: $0, place: place) }
            } catch {
                throw error.prefixed(place)
            }
        }
        return words
    }

    /// The line as far as a `#` that is neither quoted nor in a word, and without a `\` at the end.
    private static func withoutComment(_ line: String) -> String {
        var bytes = Array(line.utf8)
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
