@testable import BatonModules
import BatonRuntime
@testable import ForeignFFI

/// What the loader reads of a module's file before any of its code is mapped.
extension Target {
    static let moduleFile = Target(
        name: "module",
        seeds: { [moduleImage(stamp: "0123_release"), moduleImage(stamp: nil)] },
        make: {
            let file = try MemoryFile("module")
            return { input in
                file.write(input)
                guard let image = try? ModuleImage(fd: file.fd, path: "the input") else { return }
                expect((image.stamp?.utf8.count ?? 0) <= 3 * 128, "the stamp has no limit")
                expect(image.objectTypes.allSatisfy { $0.utf8.count <= 3 * 128 }, "a type's name has no limit")
            }
        })

    /// A shared object with one segment, and a table of dynamic symbols as the loader reads it.
    private static func moduleImage(stamp: String?) -> [UInt8] {
        var strings = "\0baton_module_query\0baton_module_provides_object_a_b\0"
        let stampPlace = strings.utf8.count
        strings += "baton_runtime_stamp_\(stamp ?? "")\0"
        var symbols = [UInt8](repeating: 0, count: 24)
        for (name, section) in [(1, 1), (20, 1)] + (stamp == nil ? [] : [(stampPlace, 0)]) {
            symbols += little(UInt32(name)) + [0x12, 0] + little(UInt16(section)) + little(0 as UInt64, 8 as UInt64)
        }
        let text = Array(strings.utf8)
        let symbolsAt = 64 + 56
        let stringsAt = symbolsAt + symbols.count
        let sectionsAt = stringsAt + text.count
        func section(_ type: UInt32, _ offset: Int, _ size: Int, link: UInt32) -> [UInt8] {
            little(0 as UInt32, type) + little(0 as UInt64, 0, UInt64(offset), UInt64(size)) + little(link, 0)
                + little(0 as UInt64, 0)
        }
        var file: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        file += little(3 as UInt16, hostMachine) + little(1 as UInt32)
        file += little(0 as UInt64, 64, UInt64(sectionsAt)) + little(0 as UInt32)
        for value in [64, 56, 1, 64, 3, 0] { file += little(UInt16(value)) }
        file += little(1 as UInt32, 5) + little(0 as UInt64, 0, 0, UInt64(symbolsAt), UInt64(symbolsAt), 4096)
        file += symbols + text
        file +=
            section(0, 0, 0, link: 0) + section(11, symbolsAt, symbols.count, link: 2)
            + section(3, stringsAt, text.count, link: 0)
        return file
    }

    #if arch(x86_64)
    private static let hostMachine: UInt16 = 62
    #elseif arch(arm64)
    private static let hostMachine: UInt16 = 183
    #else
    private static let hostMachine: UInt16 = 243
    #endif

    /// The signatures of a foreign module's functions (baton-module.h).
    static let signature = Target(
        name: "signature", longestInput: 256,
        seeds: { ["v()", "b(sI?s>L)", "l(Bfh?d>sB)", "i(>)"].map { Array($0.utf8) } },
        make: {
            { input in
                let text = String(decoding: input, as: UTF8.self)
                guard let signature = try? Signature(parsing: text) else { return }
                func letters(_ items: [Signature.Item]) -> String {
                    items.map { ($0.isOptional ? "?" : "") + String(Unicode.Scalar($0.letter.rawValue)) }.joined()
                }
                let result = String(Unicode.Scalar(signature.result.rawValue))
                let again = "\(result)(\(letters(signature.arguments))>\(letters(signature.results)))"
                expect((try? Signature(parsing: again)) == signature, "'\(text)' is another signature than '\(again)'")
            }
        })
}
