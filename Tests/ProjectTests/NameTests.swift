import Foundation
import TestSupport
import Testing

/// The core runtime knows what a mode, device, instruction set or accelerator is, and none by name: it asks for a
/// promise or a kind. All that has a name is derived from the tree.
@Suite("Names in the core runtime")
struct NameTests {
    /// Folders of `Plugins` whose names are words of the kernel's, or everybody's, and mean these in the core.
    private static let words: Set = ["bridge", "cforeign", "fd", "file", "memfd"]

    /// `VhostUser` as it is written on a command line: `vhost-user`.
    private func dashed(_ name: String) -> String {
        name.replacing(#/([a-z])([A-Z])/#) { "\($0.1)-\($0.2)" }.replacing(#/([A-Z])([A-Z][a-z])/#) {
            "\($0.1)-\($0.2)"
        }
        .lowercased()
    }

    private func modules() throws -> Set<String> {
        var names: Set<String> = []
        for kind in try SourceTree.entries("Plugins") {
            for name in try SourceTree.entries("Plugins/\(kind)") where !NameTests.words.contains(name.lowercased()) {
                names.formUnion([name.lowercased(), dashed(name)])
            }
        }
        // The names of their files: with its kind before it, also `fd` is a module's.
        for match in try SourceTree.text("Package.swift").matches(of: #/file: "([a-z-]+)"/#) {
            names.insert(String(match.1))
        }
        return names
    }

    /// What has boards is named for the board; instruction sets have a folder each.
    private func machines() throws -> (boards: Set<String>, sets: Set<String>, accelerators: Set<String>) {
        var (boards, sets, accelerators): (Set<String>, Set<String>, Set<String>) = ([], [], [])
        for set in try SourceTree.entries("Sources/Devices/Sources/InstructionSets") { sets.insert(set.lowercased()) }
        for part in try SourceTree.entries("Sources") where part != "Runtime" && part != "Devices" {
            if part.hasSuffix("Board") { boards.insert(part.dropLast(5).lowercased()) }
            for file in try SourceTree.files("Sources/\(part)", ["swift"]) where file.hasSuffix("Accelerator.swift") {
                for match in try SourceTree.text(file).matches(of: #/let name = "(\w+)"/#) {
                    accelerators.insert(String(match.1))
                }
            }
        }
        return (boards, sets, accelerators)
    }

    private func devices() throws -> Set<String> {
        var names: Set<String> = []
        let files =
            try SourceTree.files("Sources", ["swift"]).filter {
                $0.contains(#/Sources/\w*Board/Devices//#) || $0.contains(#/Sources/Virtio/\w+/Virtio\w+\.swift/#)
            }
        for file in files where !file.contains("/Core/") && !file.contains("/Offload/") && !file.contains("/PCI/") {
            let name = file.split(separator: "/").last?.prefix { $0 != "." && $0 != "+" } ?? ""
            names.formUnion([name.lowercased(), dashed(String(name))])
        }
        for match in try SourceTree.text("Sources/Devices/Sources/Virtio/Models/DeviceModel.swift").matches(
            of: #/"(virt\w*-?[a-z]+)"/#)
        {
            names.insert(String(match.1))
        }
        // What devices plug into is the core's own.
        return names.filter { !$0.hasSuffix("-bus") }
    }

    /// Letters, digits, dashes and underscores that belong together; but for names of the kernel's system calls, of which
    /// one restarts a call, and another the host.
    private func tokens(_ text: String) -> Set<String> {
        let text = text.replacing(#/CALL\(\w+\)|\w+_syscall\b/#, with: "")
        return Set(text.matches(of: #/[A-Za-z][A-Za-z0-9_-]*/#).map { $0.0.lowercased() })
    }

    @Test func theListsAreDerived() throws {
        let (modules, machines, devices) = (try modules(), try machines(), try devices())
        #expect(
            modules.isSuperset(of: ["restart", "reboot", "tap", "vfio", "vfio-user", "vhost-user", "preserver-fd"]))
        #expect(
            machines.boards == ["virt"] && machines.sets == ["riscv", "x86"] && machines.accelerators == ["kvm", "tcg"])
        #expect(devices.isSuperset(of: ["plic", "virtio-blk", "virtio-rng", "goldfish-rtc"]))
    }

    @Test func theCoreNamesNoModuleDeviceOrMachine() throws {
        let machines = try machines()
        let names = try modules().union(machines.boards).union(machines.accelerators).union(try devices())
        for file in try SourceTree.files(SourceTree.runtime, ["swift", "c", "h"]) {
            let text = try SourceTree.text(file)
            for token in tokens(text) {
                let name = names.first { token == $0 || token.hasPrefix($0 + "-") || token.hasPrefix($0 + "_") }
                #expect(name == nil, "\(file) names '\(name ?? "")' ('\(token)')")
            }
            for set in machines.sets {
                // What this process itself was built for is another matter.
                let own = text.replacing(#/#(else|el)?if .*/#, with: "")
                #expect(!own.lowercased().contains(set), "\(file) names the instruction set '\(set)'")
            }
        }
    }

    /// QEMU's vocabulary of migration is a part beside the monitors.
    @Test func theCoreHasNoMigrateCommands() throws {
        for file in try SourceTree.files(SourceTree.runtime, ["swift"]) {
            let text = try SourceTree.text(file)
            #expect(!text.contains(#/"(info )?migrate/#), "\(file) has a migrate command")
        }
    }
}
