// swift-tools-version:6.1
import PackageDescription

// Everything that the VMM process loads is compiled without the implicit
// Concurrency and StringProcessing imports: each is a shared library that
// every start (and so every guest pause) would have to map.
let lean: [SwiftSetting] = [
    .unsafeFlags([
        "-Xfrontend", "-disable-implicit-concurrency-module-import",
        "-Xfrontend", "-disable-implicit-string-processing-module-import",
    ])
]
// The interpreter works on raw pointers that it alone owns while it runs.
let hot: [SwiftSetting] = lean + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

// The interpreter's dispatch (a load and an indirect jump) repeated behind every
// op instead of shared by all: a third faster, as each jump is predicted by
// itself. LLVM does it for computed gotos, and with these limits for a switch.
let interpreter: [SwiftSetting] = hot + [
    .unsafeFlags([
        "-Xllvm", "-tail-dup-size=16", "-Xllvm", "-tail-dup-pred-size=1000", "-Xllvm", "-tail-dup-succ-size=1000",
    ])
]

let runtime: Target.Dependency = .product(name: "BatonRuntime", package: "Runtime")

func part(_ name: String, _ dependencies: [Target.Dependency] = [], settings: [SwiftSetting] = lean) -> Target {
    .target(name: name, dependencies: [runtime] + dependencies, path: "Sources/\(name)", swiftSettings: settings)
}

func module(_ name: String, _ path: String) -> Target {
    .target(name: name, dependencies: [runtime], path: "Plugins/\(path)", swiftSettings: lean)
}

func moduleProduct(_ fileName: String, _ target: String) -> Product {
    .library(name: fileName, type: .dynamic, targets: [target])
}

let package = Package(
    name: "baton",
    products: [
        .executable(name: "baton", targets: ["baton"]),
        .executable(name: "baton-ctl", targets: ["baton-ctl"]),
        .executable(name: "baton-demo", targets: ["baton-demo"]),
        moduleProduct("mode-reboot", "ModeReboot"),
        moduleProduct("mode-restart", "ModeRestart"),
        moduleProduct("memory-backend-file", "MemoryBackendFile"),
        moduleProduct("memory-backend-memfd", "MemoryBackendMemfd"),
        moduleProduct("preserver-fd", "PreserverFD"),
        moduleProduct("foreign-ffi", "ForeignFFI"),
    ],
    dependencies: [
        .package(path: "Sources/Runtime"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        .target(name: "SoftFloat", path: "Sources/SoftFloat", swiftSettings: hot),
        part("RISCV", ["SoftFloat"], settings: interpreter),
        part("Virtio"),
        part("Chardev"),
        part("Monitor"),
        part("VirtBoard", ["RISCV", "Virtio"]),
        .executableTarget(
            name: "baton", dependencies: [runtime, "RISCV", "Virtio", "VirtBoard", "Chardev", "Monitor"],
            path: "Sources/baton", swiftSettings: lean),
        .executableTarget(
            name: "baton-ctl",
            dependencies: [runtime, .product(name: "ArgumentParser", package: "swift-argument-parser")],
            path: "Sources/baton-ctl"),
        .executableTarget(
            name: "baton-demo",
            dependencies: [.product(name: "ArgumentParser", package: "swift-argument-parser")],
            path: "Sources/baton-demo"),

        module("ModeReboot", "Modes/Reboot"),
        module("ModeRestart", "Modes/Restart"),
        module("MemoryBackendFile", "Memory/File"),
        module("MemoryBackendMemfd", "Memory/Memfd"),
        // A foreign module: C, and all that it knows is baton-module.h.
        .target(name: "PreserverFD", dependencies: [runtime], path: "Plugins/Preservers/FD"),
        .target(name: "CForeign", path: "Plugins/Foreign/CForeign", linkerSettings: [.linkedLibrary("ffi")]),
        .target(
            name: "ForeignFFI", dependencies: [runtime, "CForeign"], path: "Plugins/Foreign/Bridge",
            swiftSettings: lean),

        .target(name: "TestSupport", path: "Tests/TestSupport"),
        .target(
            name: "HostFloat", path: "Tests/HostFloat",
            cSettings: [.unsafeFlags(["-frounding-math", "-ftrapping-math", "-ffp-contract=off"])]),
        .testTarget(name: "SoftFloatTests", dependencies: ["SoftFloat", "HostFloat"], path: "Tests/SoftFloatTests"),
        .testTarget(name: "RISCVTests", dependencies: ["RISCV", "TestSupport", runtime], path: "Tests/RISCVTests"),
        .testTarget(name: "DeviceTests", dependencies: ["RISCV", "Virtio", "VirtBoard", "TestSupport", runtime], path: "Tests/DeviceTests"),
        .testTarget(name: "RuntimeTests", dependencies: ["TestSupport", runtime], path: "Tests/RuntimeTests"),
        .testTarget(name: "MonitorTests", dependencies: ["Monitor", "Chardev", "TestSupport", runtime], path: "Tests/MonitorTests"),
        .testTarget(name: "DemoTests", dependencies: ["TestSupport"], path: "Tests/DemoTests"),
        .testTarget(name: "BatonTests", dependencies: ["TestSupport"], path: "Tests/BatonTests"),
    ],
    swiftLanguageModes: [.v5]
)
