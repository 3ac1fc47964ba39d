// fuzz TARGET [OPTION|CORPUS]...   feeds inputs to a target until libFuzzer's options end it, or something is found
// fuzz TARGET --seeds DIRECTORY    writes the inputs that the target begins from
// fuzz TARGET --options            the libFuzzer options that the target needs
// fuzz TARGET --dictionary FILE    writes the words that inputs often have in them
// fuzz --list                      the targets' names
import Glibc

/// libFuzzer's own loop (FuzzerInterface.h): of its library without a `main`.
@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
    _ count: UnsafeMutablePointer<Int32>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ callback: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

private func fail(_ text: String) -> Never {
    fputs("fuzz: \(text)\n", stderr)
    exit(2)
}

private let targets: [Target] = [
    .json, .options, .container, .cprState, .handover, .qmp, .hmp, .deviceTree, .virtImages, .microVMImages,
    .moduleFile, .signature, .kvmState, .virtState, .microVMState, .virtRegisters, .microVMRegisters, .virtQueues,
    .hart, .plainCode, .sbi, .ramContents, .vhostUser, .vfioUser, .frames,
]

/// Feeds the target that is run.
nonisolated(unsafe) private var body: ([UInt8]) throws -> Void = { _ in }

private let words = CommandLine.arguments
guard words.count > 1 else { fail("say a target, or --list") }
if words[1] == "--list" {
    for target in targets { print(target.name) }
    exit(0)
}
guard let target = targets.first(where: { $0.name == words[1] }) else {
    fail("there is no target '\(words[1])': \(targets.map(\.name).joined(separator: " "))")
}
if words.count == 3, words[2] == "--options" {
    print(target.options)
    exit(0)
}
// A peer that is gone is an error of a write, as in the VMM.
signal(SIGPIPE, SIG_IGN)
do {
    if words.count == 4, words[2] == "--seeds" {
        for (number, seed) in try target.seeds().enumerated() {
            try writeFile("\(words[3])/seed-\(number)", seed)
        }
        exit(0)
    }
    if words.count == 4, words[2] == "--dictionary" {
        try writeFile(words[3], Array(target.dictionary().utf8))
        exit(0)
    }
    body = try target.make()
} catch {
    fail("\(target.name): \(error)")
}

// libFuzzer does not know of the target's name.
var count = CommandLine.argc - 1
var arguments = CommandLine.unsafeArgv + 1
arguments[0] = CommandLine.unsafeArgv[0]
exit(
    runDriver(&count, &arguments) { bytes, count in
        let input = Array(UnsafeBufferPointer(start: bytes, count: count))
        do { try body(input) } catch { found("an error that the target does not expect: \(error)") }
        return 0
    })
