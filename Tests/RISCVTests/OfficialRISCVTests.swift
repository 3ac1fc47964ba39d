import Foundation
import TestSupport
import Testing

@Suite(
    "riscv-tests",
    .enabled(if: OfficialTests.absence == nil, "no riscv-tests: \(OfficialTests.absence ?? "")"))
struct OfficialRISCVTests {
    @Test("passes", arguments: OfficialTests.cases)
    func passes(_ test: OfficialTests.Case) throws {
        let elf = try ELFFile(path: OfficialTests.build(test))
        let tohost = try #require(elf.symbol("tohost"))
        let machine = try TestMachine(megabytes: 32, cpu: "max")
        for segment in elf.segments where !segment.bytes.isEmpty {
            try machine.load(segment.bytes, at: segment.address)
        }
        machine.hart.setResetVector(pc: elf.entry, a0: 0, a1: 0)
        machine.reset()
        try machine.run(until: "a store to tohost") { machine[tohost] != 0 }
        // 1 is success; else the number of the test case that failed, and 1.
        #expect(machine[tohost] == 1, "test case \(machine[tohost] >> 1) failed")
    }

    @Test("are there to be run")
    func areThere() throws { #expect(OfficialTests.cases.count > 300) }
}
