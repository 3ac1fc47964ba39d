@testable import BatonCPR
@testable import BatonMachine
import BatonRuntime
import Glibc

/// The contents of RAM in a checkpoint's file: where they are, and whether they are what they were.
extension Target {
    static let ramContents = Target(
        name: "ram-contents",
        seeds: { [[0, 0, 0], [0, 0, 1]] + (0..<10).map { [0, 0, 1, $0, 0, 0, 0, 0, 3] } },
        make: {
            let memory = GuestMemory()
            for (name, size) in [("a", 8192), ("b", 4096)] {
                let block = try memory.allocate(RAMRequest(name: name, usedLength: size))
                memset(block.host, 0x5a, size)
            }
            var container = SectionContainer(kind: .checkpoint)
            RAMContents.describe(memory.blocks, in: &container)
            guard let section = container.section(RAMContents.sectionName) else { throw HarnessError("no section") }
            let base = Array(section.payload)
            let file = try MemoryFile("checkpoint")
            return { bytes in
                var input = Input(bytes)
                let missing = Int(input.number(UInt16.self))
                var state = EditableState(base)
                for _ in 0..<input.byte() % 6 { state.edit(&input) }
                var changed = SectionContainer(kind: .checkpoint)
                changed.add(
                    SectionContainer.Section(
                        name: RAMContents.sectionName, version: 1, optional: false, payload: state.bytes[...]))
                file.write(changed.encoded())
                for block in memory.blocks { memset(block.host, 0x5a, block.usedLength) }
                do throws(VMMError) {
                    try RAMContents.write(memory.blocks, to: file.fd, after: changed.encodedLength, name: "the input")
                } catch { throw HarnessError("the contents cannot be written: \(error.message)") }
                if missing > 0 {
                    ftruncate(file.fd, max(0, lseek(file.fd, 0, SEEK_END) - off_t(missing)))
                }
                for block in memory.blocks { memset(block.host, 0x11, block.usedLength) }
                let checked: RAMContents.Checked
                do throws(VMMError) {
                    checked = try RAMContents.check(changed, from: file.fd, memory: memory, name: "the input")
                } catch {
                    let isSame = memory.blocks.allSatisfy { block in Target.isFilled(block, 0x11) }
                    expect(isSame, "contents that are refused have changed memory")
                    return
                }
                do throws(VMMError) { try checked.copy() } catch {
                    found("what was checked cannot be copied: \(error)")
                }
                for block in memory.blocks where checked.contains(block) {
                    expect(Target.isFilled(block, 0x5a), "'\(block.name)' does not have its contents")
                }
            }
        })

    private static func isFilled(_ block: RAMBlock, _ byte: UInt8) -> Bool {
        UnsafeRawBufferPointer(start: block.host, count: block.usedLength).allSatisfy { $0 == byte }
    }
}
