// Writes a Swift file that carries the fingerprint of the runtime: a hash over
// the runtime's sources, its build configuration and the compiler. Run by the
// StampRuntime build plugin: fingerprint OUTPUT COMPILER SOURCE...
import Foundation

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
// Written only when it has changed: `swift build` and `swift test` link this tool in turn, each in its own way, and
// run it again. A file that is as it was has nothing compiled again.
if FileManager.default.contents(atPath: output) != Data(text.utf8) {
    try Data(text.utf8).write(to: URL(fileURLWithPath: output))
}
