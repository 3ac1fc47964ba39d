// Writes Swift files that carry what was built. Run by build plugins:
//
//   fingerprint OUTPUT COMPILER SOURCE...   the fingerprint of the runtime: a hash over its sources, its build
//                                           configuration and the compiler (StampRuntime)
//   fingerprint --revision OUTPUT [LOG]     the git revision that LOG, git's logs/HEAD, ends with (StampRevision)
import Foundation

/// Written only when it has changed: `swift build` and `swift test` link this tool in turn, each in its own way, and
/// run it again. Behind a file that is as it was nothing is compiled again.
func write(_ text: String, to path: String) throws {
    guard FileManager.default.contents(atPath: path) != Data(text.utf8) else { return }
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
}

if CommandLine.arguments.count > 2, CommandLine.arguments[1] == "--revision" {
    let log = CommandLine.arguments.dropFirst(3).first.flatMap { FileManager.default.contents(atPath: $0) } ?? Data()
    // OLD NEW NAME <ADDRESS> TIME ZONE<tab>WHAT
    let words = String(decoding: log, as: UTF8.self).split(separator: "\n").last?.split(separator: " ") ?? []
    let revision = words.count > 2 && words[1].allSatisfy(\.isHexDigit) ? words[1].prefix(12) : ""
    try write("let buildRevision = \"\(revision)\"\n", to: CommandLine.arguments[2])
    exit(0)
}

guard CommandLine.arguments.count > 3 else {
    FileHandle.standardError.write(Data("usage: fingerprint OUTPUT COMPILER SOURCE...\n".utf8))
    exit(2)
}
let output = CommandLine.arguments[1]
let compiler = CommandLine.arguments[2]

/// FNV-1a, 64 bits: guards against mistakes, not against an adversary (the
/// loader's file ownership rules do that).
var hash: UInt64 = 0xcbf2_9ce4_8422_2325
func mix(_ bytes: some Sequence<UInt8>) {
    for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
}

mix(compiler.utf8)
for path in CommandLine.arguments[3...].sorted() {
    guard let data = FileManager.default.contents(atPath: path) else {
        FileHandle.standardError.write(Data("fingerprint: cannot read \(path)\n".utf8))
        exit(1)
    }
    mix((path as NSString).lastPathComponent.utf8)
    mix(data)
}
let hex = String(hash, radix: 16)
let padded = String(repeating: "0", count: 16 - hex.count) + hex

func stamp(_ configuration: String) -> String {
    let fingerprint = "\(padded)_\(configuration)"
    return """
        /// Exists so that its symbol's name carries the fingerprint: a module
        /// refers to it, so the loader reads in a module's symbol table which
        /// runtime it was built against before any of its code runs. A call
        /// without an effect would be optimized away, and the reference with it.
        @inline(never)
        @_silgen_name("baton_runtime_stamp_\(fingerprint)")
        public func _batonRuntimeStamp() { _batonRuntimeStampCalls &+= 1 }
        public nonisolated(unsafe) var _batonRuntimeStampCalls = 0
        /// The runtime's fingerprint: sources, compiler and configuration.
        public let runtimeFingerprint: StaticString = "\(fingerprint)"
        /// The fingerprint of the runtime that the calling code was compiled
        /// against: the value is compiled into the caller.
        @_alwaysEmitIntoClient
        public var compiledFingerprint: StaticString { "\(fingerprint)" }
        """
}
let text = """
    #if DEBUG
    \(stamp("debug"))
    #else
    \(stamp("release"))
    #endif

    """
try write(text, to: output)
