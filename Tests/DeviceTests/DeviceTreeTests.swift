import BatonRuntime
import Foundation
import TestSupport
import Testing
import VirtBoard

let haveDTC = FileManager.default.isExecutableFile(atPath: "/usr/bin/dtc")
let haveQEMU = FileManager.default.isExecutableFile(atPath: "/usr/bin/qemu-system-riscv64")

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

    /// Every node that both have gives the same `reg`, `compatible` and
    /// `interrupts`.
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
            for name in ["reg", "compatible", "interrupts", "clock-frequency", "value", "ranges", "mmu-type"] {
                guard let value = a.value(name) else { continue }
                #expect(b.value(name) == value, "\(path) \(name)")
                compared += 1
            }
            for child in a.children {
                // QEMU's flash and PCI are not there yet.
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

/// Runs a program to its end.
/// - Returns: what it wrote to standard output.
func run(_ arguments: [String]) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: arguments[0])
    process.arguments = Array(arguments.dropFirst())
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = FileHandle.nullDevice
    try process.run()
    let data = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return String(decoding: data, as: UTF8.self)
}
