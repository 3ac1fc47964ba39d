import BatonRuntime
@testable import VirtBoard

/// `-dtb`: a flattened device tree.
extension Target {
    static let deviceTree = Target(
        name: "fdt", longestInput: 1 << 16,
        seeds: {
            var tree = DeviceTree()
            tree.root.set("#address-cells", 2)
            let chosen = tree.root.child("chosen")
            chosen.set("bootargs", "console=ttyS0")
            tree.root.child("cpus").child("cpu@0").set("reg", 0)
            tree.reservations = [(0x8000_0000, 0x1000)]
            let board = BoardTree(hartCount: 1, memorySize: 64 << 20, aia: .none, hasFirmware: false).make()
            return [tree.flattened(), DeviceTree().flattened(), board.flattened()]
        },
        make: {
            { bytes in
                var input = bytes
                // What the fuzzer would need long to find.
                if input.count >= 8, input[0] != 0xff {
                    input.replaceSubrange(
                        0..<8, with: [0xd0, 0x0d, 0xfe, 0xed] + little(UInt32(input.count)).reversed())
                }
                guard let tree = try? DeviceTree(flattened: input) else { return }
                let flat = tree.flattened()
                let again = try DeviceTree(flattened: flat)
                expect(Target.isSame(tree.root, again.root), "the tree is another after it was flattened")
                expect(again.flattened() == flat, "the tree is flattened in another way the second time")
            }
        })

    private static func isSame(_ one: DeviceTreeNode, _ other: DeviceTreeNode) -> Bool {
        one.name == other.name && one.properties.elementsEqual(other.properties) { $0 == $1 }
            && one.children.elementsEqual(other.children) { isSame($0, $1) }
    }
}
