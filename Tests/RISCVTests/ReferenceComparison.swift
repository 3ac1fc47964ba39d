import Foundation
import TestSupport
import Testing

/// A way in which QEMU differs from Baton and is wrong, older than the specification, or free to differ.
struct ReferenceException: Sendable {
    /// What the cases are about and why Baton is right, with the section of the specification.
    let reason: String
    /// The versions of QEMU that differ, as in 7.02 for 7.2; nil for all. Those of Debian are known, 7.2 and 10.0; what
    /// was mended between is taken for mended in 10.
    var versions: ClosedRange<Double>?
    static let beforeTen: ClosedRange<Double> = 0...9.99
    /// Whether it must be met with a version that is known: one of a program is, or it is out of date.
    var isRequired = true
    /// Which fields of a difference this is the reason for.
    let excuses: @Sendable (ReferenceDifference) -> ReferenceRecord.Fields

    func applies(to version: (major: Int, minor: Int)) -> Bool {
        guard let versions else { return true }
        return versions.contains(Double(version.major) + Double(version.minor) / 100)
    }

    /// For all programs.
    static let general: [ReferenceException] = [
        ReferenceException(
            reason: "mtval of an ebreak is 0 or its address (privileged 1.12, 3.1.16)", isRequired: false
        ) {
            var fields: ReferenceRecord.Fields = []
            if $0.qemu.mcause == 3, $0.qemu.mtval == 0, $0.baton.mtval == $0.baton.mepc { fields.insert(.mtval) }
            if $0.qemu.scause == 3, $0.qemu.stval == 0, $0.baton.stval == $0.baton.sepc { fields.insert(.stval) }
            return fields
        },
        ReferenceException(
            reason: "an sc may fail (unprivileged 14.2): a turn of Baton's hart ends its reservation, as in one of "
                + "some million cases on a busy machine", isRequired: false
        ) {
            let isTrap = $0.qemu.mcause != $0.baton.mcause || $0.qemu.scause != $0.baton.scause
            return $0.group.contains("sc.") && !isTrap ? [.x, .watched] : []
        },
        ReferenceException(
            reason: "QEMU's AMOs fault as loads (privileged 1.12, 3.1.15: store/AMO)",
            versions: ReferenceException.beforeTen,
            isRequired: false
        ) {
            func isLoad(_ qemu: UInt64, _ baton: UInt64) -> Bool {
                [(4, 6), (5, 7), (13, 15)].contains { $0 == (qemu, baton) }
            }
            guard $0.group.hasPrefix("amo") else { return [] }
            var fields: ReferenceRecord.Fields = []
            if isLoad($0.qemu.mcause, $0.baton.mcause) { fields.insert(.mcause) }
            if isLoad($0.qemu.scause, $0.baton.scause) { fields.insert(.scause) }
            return fields
        },
    ]
}

struct ReferenceDifference {
    let group: String
    let operands: [UInt64]
    /// What differs and has no reason yet.
    var fields: ReferenceRecord.Fields
    let qemu: ReferenceRecord
    let baton: ReferenceRecord
}

extension ReferenceProgram {
    /// Runs the program on both, and reports what differs.
    /// - Parameter reference: nil for the installed one.
    func compare(
        on reference: ReferenceMachine? = nil, exceptions: [ReferenceException] = [],
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        guard let reference = reference ?? ReferenceMachine.installed else { throw TestError("no reference") }
        let known = (ReferenceException.general + exceptions).filter { $0.applies(to: reference.version) }
        var matched = [Int](repeating: 0, count: known.count)
        let (qemu, baton) = try ReferenceMachine.run(self, on: reference)
        var unexpected: [(number: Int, difference: ReferenceDifference)] = []
        var counts: [String: Int] = [:]
        for number in 0..<caseCount where !qemu.hasEqualRecord(number, baton) {
            let group = group(of: number)
            let (expected, found) = (qemu.record(number), baton.record(number))
            var difference = ReferenceDifference(
                group: group.name, operands: Array(operands(of: number)),
                fields: expected.differs(from: found).intersection(group.compared), qemu: expected, baton: found)
            for (index, exception) in known.enumerated() where !difference.fields.isEmpty {
                let excused = exception.excuses(difference).intersection(difference.fields)
                if !excused.isEmpty { matched[index] += 1 }
                difference.fields.subtract(excused)
            }
            guard !difference.fields.isEmpty else { continue }
            counts[group.name, default: 0] += 1
            if counts[group.name] == 1 { unexpected.append((number, difference)) }
        }
        print("\(name): \(caseCount) cases, seed \(String(seed, radix: 16))")
        for (exception, count) in zip(known, matched) where count > 0 {
            print("  \(count) differ as expected: \(exception.reason)")
        }
        for (exception, count) in zip(known, matched) where count == 0 && exception.isRequired && reference.isKnown {
            Issue.record("nothing differs any more as expected: \(exception.reason)", sourceLocation: sourceLocation)
        }
        // The first of each group; a few in full, as it takes another run to say which register differs.
        for (index, (number, difference)) in unexpected.enumerated() {
            let count = counts[difference.group] ?? 0
            let text = try explain(number, difference, on: index < 4 ? reference : nil)
            Issue.record("\(text)\n  (\(count) such in this group)", sourceLocation: sourceLocation)
            if index == 100 { break }
        }
    }

    /// A case in words.
    func describe(_ number: Int) -> String {
        guard number < caseCount else { return "the end" }
        let group = group(of: number)
        let values = zip(group.places, operands(of: number)).map { "\(Place.name($0)) \(Hex64($1))" }
        return "case \(number), \(group.name)" + (values.isEmpty ? "" : ": " + values.joined(separator: ", "))
    }

    private func explain(_ number: Int, _ difference: ReferenceDifference, on reference: ReferenceMachine?) throws
        -> String
    {
        var lines = [describe(number)]
        for (index, field) in ReferenceRecord.layout.enumerated()
        where difference.fields.contains(.init(rawValue: 1 << index)) && field.0 != "X" && field.0 != "F" {
            lines.append(
                "  \(field.0.lowercased()): \(Hex64(difference.baton.words[index])),"
                    + " QEMU: \(Hex64(difference.qemu.words[index]))")
        }
        // Which register: that is in no record, so it is asked for in another run.
        if let reference, !difference.fields.isDisjoint(with: [.x, .f]) {
            let (qemu, baton) = try ReferenceMachine.run(self, on: reference, asked: number)
            for (index, (expected, found)) in zip(qemu.registers, baton.registers).enumerated() where expected != found
            {
                lines.append("  \(Place.name(index)): \(Hex64(found)), QEMU: \(Hex64(expected))")
            }
        }
        return lines.joined(separator: "\n")
    }
}

extension ReferenceProgram.Place {
    static func name(_ place: Int) -> String {
        let names = [
            "fcsr", "pc", "at", "is", "at", "is", "watch", "satp", "medeleg", "mideleg", "mie", "mip", "menvcfg",
            "stvec", "mcounteren", "scounteren", "senvcfg", "pmpcfg0", "pmpcfg2", "pmpaddr0", "pmpaddr1", "pmpaddr2",
            "pmpaddr3",
        ]
        switch place {
        case 0: return "mstatus"
        case 1..<32: return "x\(place)"
        case 32..<64: return "f\(place - 32)"
        default: return names[place - 64]
        }
    }
}

struct Hex64: CustomStringConvertible {
    let value: UInt64
    init(_ value: UInt64) { self.value = value }
    var description: String { "0x" + String(value, radix: 16) }
}
