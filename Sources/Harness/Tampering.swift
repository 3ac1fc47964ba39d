import BatonRuntime
import Foundation
import ProcessSupport

/// What can be done to a checkpoint so that it must be refused.
public enum Tampering: String, CaseIterable, Sendable {
    /// One bit of the first device's section is another.
    case damaged
    /// The second half is missing.
    case truncated
    /// The first hart's section has a version below all, with a good checksum.
    case olderState = "older-state"
    /// The same with a version that is yet to come.
    case newerState = "newer-state"
    /// A section that nobody knows, and that is not optional.
    case unknownSection = "unknown-section"
    /// Another file altogether.
    case foreign

    static let hart = "cpu0"

    /// The checkpoint's bytes, changed.
    func apply(to bytes: [UInt8]) throws -> [UInt8] {
        // The header says how many bytes of sections follow it; behind them may be the contents of RAM.
        let length = bytes.dropFirst(16).prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        let end = Int(min(UInt64(bytes.count), 32 + length))
        switch self {
        case .damaged:
            var changed = bytes
            changed[end / 2] ^= 0x04
            return changed
        case .truncated: return Array(bytes.prefix(bytes.count / 2))
        case .foreign: return Array("#!/bin/sh\nexit 1\n".utf8)
        case .olderState, .newerState, .unknownSection:
            let container = try SectionContainer(
                kind: .checkpoint, parsing: Array(bytes[..<end]), name: "the checkpoint")
            var changed = SectionContainer(kind: .checkpoint)
            for var section in container.sections {
                if section.name == Self.hart, self == .olderState { section.version = 0 }
                if section.name == Self.hart, self == .newerState { section.version += 1 }
                changed.add(section)
            }
            if self == .unknownSection { changed.add("harness-unknown", version: 1, StateWriter()) }
            return Self.aligned(changed.encoded(), whenFollowed: end < bytes.count)
                + bytes.dropFirst(Self.alignedEnd(end))
        }
    }

    /// Contents of RAM start at a multiple of 4096.
    private static func alignedEnd(_ end: Int) -> Int { (end + 4095) & ~4095 }
    private static func aligned(_ bytes: [UInt8], whenFollowed isFollowed: Bool) -> [UInt8] {
        guard isFollowed else { return bytes }
        return bytes + [UInt8](repeating: 0, count: alignedEnd(bytes.count) - bytes.count)
    }

    /// Changes a file.
    func apply(toFile path: String) throws {
        let url = URL(fileURLWithPath: path)
        try Data(try apply(to: Array(try Data(contentsOf: url)))).write(to: url)
    }

    /// Changes the checkpoint that the VMM before has handed to this process,
    /// which is about to execute the VMM.
    public func applyToInheritedCheckpoint() throws {
        let variable = CprState.environmentVariable
        guard let text = ProcessInfo.processInfo.environment[variable], let state = Int32(text) else {
            throw Failure("\(variable) is not set: no VMM has executed this")
        }
        let container = try SectionContainer(kind: .cprState, parsing: try Self.contents(state), name: "the CPR state")
        guard let section = container.section("cpr") else { throw Failure("the CPR state has no section 'cpr'") }
        let checkpoint = Int32(try container.reader(section).unsigned("checkpoint-fd", in: 3...UInt64(Int32.max)))
        let changed = try apply(to: try Self.contents(checkpoint))
        guard ftruncate(checkpoint, 0) == 0, pwrite(checkpoint, changed, changed.count, 0) == changed.count else {
            throw Failure.system("write the checkpoint")
        }
    }

    private static func contents(_ fd: Int32) throws -> [UInt8] {
        var status = stat()
        guard fstat(fd, &status) == 0 else { throw Failure.system("fstat \(fd)") }
        var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
        guard pread(fd, &bytes, bytes.count, 0) == bytes.count else { throw Failure.system("read fd \(fd)") }
        return bytes
    }
}
