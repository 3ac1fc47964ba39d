import BatonRuntime
import Foundation
import TestSupport
import Testing
import VirtBoard

let haveDTC = FileManager.default.isExecutableFile(atPath: "/usr/bin/dtc")
let haveQEMU = FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-system-riscv64")

extension [UInt8] {
    /// Where the root of a flattened tree ends whose root has no children.
    fileprivate var firstIndexOfEnd: Int? {
        let end: [UInt8] = [0, 0, 0, 2, 0, 0, 0, 9]
        return indices.first { self[$0...].starts(with: end) }
    }

    /// Says in a tree's header that its structure is longer: the strings come behind it.
    fileprivate mutating func grow(by length: Int) {
        for field in [1, 3, 9] {
            let value = self[4 * field..<4 * field + 4].reduce(0) { $0 << 8 | Int($1) } + length
            for index in 0..<4 { self[4 * field + index] = UInt8(truncatingIfNeeded: value >> (24 - 8 * index)) }
        }
    }
}

@Suite struct DeviceTreeTests {
    private func sample() -> DeviceTree {
        var tree = DeviceTree()
        tree.root.set("compatible", strings: ["a", "bc"])
        let node = tree.root.child("node@1")
        node.set("flag")
        node.set("cells", 1, 2, 0xdead_beef)
        node.child("leaf").set("text", "hello")
        tree.reservations = [(0x8000_0000, 0x1000)]
        tree.bootCPU = 3
        return tree
    }

    @Test func whatWasWrittenIsReadBack() throws {
        let blob = sample().flattened()
        let tree = try DeviceTree(flattened: blob)
        #expect(tree.flattened() == blob)
        #expect(tree.root.find("node@1")?.value("cells") == [0, 0, 0, 1, 0, 0, 0, 2, 0xde, 0xad, 0xbe, 0xef])
        #expect(tree.root.find("node@1")?.find("leaf")?.value("text") == Array("hello\0".utf8))
        #expect(tree.reservations.count == 1 && tree.bootCPU == 3)
    }

    @Test func truncatedBlobsAreRefused() {
        let blob = sample().flattened()
        for length in 0..<blob.count {
            #expect(throws: VMMError.self) { try DeviceTree(flattened: Array(blob[..<length])) }
        }
    }

    @Test func corruptedBlobsNeverCrash() {
        let blob = sample().flattened()
        var random = Randomness(seed: 7)
        for index in blob.indices {
            for _ in 0..<8 {
                var bad = blob
                bad[index] = UInt8.random(in: 0...255, using: &random)
                // Whatever is accepted is well-formed.
                if let tree = try? DeviceTree(flattened: bad) {
                    #expect((try? DeviceTree(flattened: tree.flattened())) != nil)
                }
            }
        }
    }

    /// A megabyte of nodes, or of properties, takes no time that grows with its square.
    @Test func manyNodesAndPropertiesAreReadAtOnce() throws {
        let nodes = DeviceTree()
        nodes.root.set("a")
        var many = nodes.flattened()
        // Behind the root's property; names end in a zero, and are padded to words.
        let count = 60_000
        let place = try #require(many.firstIndexOfEnd)
        var structure: [UInt8] = []
        for number in 0..<count {
            let digits = Array(String(number, radix: 36).utf8)
            structure += [0, 0, 0, 1] + digits + [UInt8](repeating: 0, count: 4 - digits.count % 4) + [0, 0, 0, 2]
        }
        many.insert(contentsOf: structure, at: place)
        many.grow(by: structure.count)
        let start = EventLoop.now
        #expect(try DeviceTree(flattened: many).root.children.count == count)
        #expect(EventLoop.now - start < 5_000_000_000)
    }

    /// Names may share bytes, so that a small blob has long ones.
    @Test func longNamesAreRefused() throws {
        for length in [255, 256] {
            var tree = DeviceTree()
            tree.root.set(String(repeating: "a", count: length))
            let blob = tree.flattened()
            #expect(((try? DeviceTree(flattened: blob)) != nil) == (length == 255))
        }
    }

    @Test func saysWhatIsWrong() {
        func message(_ change: (inout [UInt8]) -> Void) -> String? {
            var blob = sample().flattened()
            change(&blob)
            do { _ = try DeviceTree(flattened: blob) } catch { return error.message }
            return nil
        }
        #expect(message { $0[0] = 0 } == "FDT_ERR_BADMAGIC")
        #expect(message { $0[23] = 2 } == "FDT_ERR_BADVERSION")
        #expect(message { $0[4] = 0xff } == "FDT_ERR_TRUNCATED")
    }

    @Test(.enabled(if: haveDTC, "dtc is not installed")) func dtcAcceptsTheBoardsTree() throws {
        let directory = try TemporaryDirectory()
        let board = try TestBoard(hartCount: 2)
        try board.board.dumpDeviceTree(to: directory.file("board.dtb"))
        let source = try run(["/usr/bin/dtc", "-q", "-I", "dtb", "-O", "dts", directory.file("board.dtb")])
        #expect(source.contains("riscv,ndev = <0x5f>;"))
        #expect(source.contains("cpu@1 {"))
        #expect(source.contains("timebase-frequency = <0x989680>;"))
    }

    /// Every node that both have gives the same `reg`, `compatible` and `interrupts`. QEMU before version 8 says sv48 for
    /// `mmu-type`, whatever its harts have.
    @Test(.enabled(if: haveQEMU, "qemu-system-riscv64 is not installed")) func theBoardsTreeAgreesWithQEMUs() throws {
        let directory = try TemporaryDirectory()
        _ = try run([
            "/usr/bin/qemu-system-riscv64", "-M", "virt,dumpdtb=\(directory.file("qemu.dtb"))", "-m", "64", "-smp", "2",
            "-display", "none",
        ])
        let qemu = try DeviceTree(flattened: Array(Data(contentsOf: URL(fileURLWithPath: directory.file("qemu.dtb")))))
        let board = try TestBoard(hartCount: 2)
        try board.board.dumpDeviceTree(to: directory.file("board.dtb"))
        let ours = try DeviceTree(flattened: Array(Data(contentsOf: URL(fileURLWithPath: directory.file("board.dtb")))))
        var compared = 0
        func compare(_ a: DeviceTreeNode, _ b: DeviceTreeNode, _ path: String) {
            for name in [
                "reg", "compatible", "interrupts", "clock-frequency", "value", "ranges", "interrupt-map-mask",
                "bus-range",
            ] {
                guard let value = a.value(name) else { continue }
                #expect(b.value(name) == value, "\(path) \(name)")
                compared += 1
            }
            for child in a.children {
                guard let other = b.find(child.name) else {
                    #expect(Bool(false), "\(path)/\(child.name) is not in QEMU's tree")
                    continue
                }
                compare(child, other, "\(path)/\(child.name)")
            }
        }
        compare(ours.root, qemu.root, "")
        #expect(compared > 40)
    }
}

extension DeviceTreeTests {
    private func tree(_ aia: AIA, firmware: Bool = false) throws -> DeviceTree {
        let directory = try TemporaryDirectory()
        let board = try TestBoard(hartCount: 2, aia: aia) { if firmware { $0.firmware = .none } }
        try board.board.dumpDeviceTree(to: directory.file("board.dtb"))
        return try DeviceTree(flattened: Array(Data(contentsOf: URL(fileURLWithPath: directory.file("board.dtb")))))
    }

    private func cells(_ node: DeviceTreeNode?, _ property: String) -> [UInt32]? {
        guard let bytes = node?.value(property) else { return nil }
        return stride(from: 0, to: bytes.count, by: 4).map { at in
            bytes[at..<at + 4].reduce(0) { $0 << 8 | UInt32($1) }
        }
    }

    @Test func messagesGoFromPCIAndTheAPLICToTheSupervisorsFiles() throws {
        let soc = try #require(tree(.aplicIMSIC).root.find("soc"))
        let files = soc.find("interrupt-controller@28000000")
        #expect(cells(files, "reg") == [0, 0x2800_0000, 0, 0x2000])
        #expect(cells(files, "interrupts-extended") == [2, 9, 4, 9])
        #expect(cells(files, "riscv,num-ids") == [255])
        let aplic = soc.find("interrupt-controller@d000000")
        #expect(cells(aplic, "msi-parent") == cells(files, "phandle"))
        #expect(cells(soc.find("pci@30000000"), "msi-parent") == cells(files, "phandle"))
        #expect(cells(soc.find("serial@10000000"), "interrupts") == [10, 4])
        #expect(cells(soc.find("serial@10000000"), "interrupt-parent") == cells(aplic, "phandle"))
        let map = cells(soc.find("pci@30000000"), "interrupt-map")
        #expect(map?.count == 16 * 7 && map?[3..<7] == [1, cells(aplic, "phandle")?[0] ?? 0, 0x20, 4])
        #expect(soc.find("plic@c000000") == nil)
    }

    @Test func withoutFirmwareWhatIsMachineLevelsIsDisabled() throws {
        for (firmware, expected) in [(false, Array("disabled\0".utf8)), (true, nil)] {
            let soc = try #require(tree(.aplicIMSIC, firmware: firmware).root.find("soc"))
            for name in ["interrupt-controller@c000000", "interrupt-controller@24000000"] {
                #expect(soc.find(name)?.value("status") == expected)
            }
            #expect(cells(soc.find("interrupt-controller@c000000"), "riscv,delegate")?.suffix(2) == [1, 96])
        }
    }

    @Test func onlyHartsWithFilesSayThatTheyHaveTheAIA() throws {
        for (aia, expected) in [(AIA.none, false), (.aplic, false), (.aplicIMSIC, true)] {
            let cpu = try tree(aia).root.find("cpus")?.find("cpu@0")
            let isa = String(decoding: cpu?.value("riscv,isa") ?? [], as: UTF8.self)
            #expect(isa.contains("_smaia_ssaia") == expected)
        }
    }
}

/// Runs a program to its end.
/// - Returns: what it wrote to standard output.
func run(_ arguments: [String]) throws -> String {
    let process = try ChildProcess(arguments)
    try process.waitForExit()
    return process.output
}
