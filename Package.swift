// swift-tools-version:6.1
import Glibc
import PackageDescription

/// For `make fuzz` (Tests/Fuzzers): code counts what it comes through.
let coverage: [SwiftSetting] =
    getenv("BATON_FUZZ") == nil ? [] : [.unsafeFlags(["-Xfrontend", "-sanitize=fuzzer"])]

// Everything that the VMM process loads is compiled without the implicit
// Concurrency and StringProcessing imports: each is a shared library that
// every start (and so every guest pause) would have to map.
let lean: [SwiftSetting] =
    [
        .unsafeFlags([
            "-Xfrontend", "-disable-implicit-concurrency-module-import",
            "-Xfrontend", "-disable-implicit-string-processing-module-import",
        ])
    ] + coverage
// The interpreter works on raw pointers that it alone owns while it runs; for devices the guest waits.
let hot: [SwiftSetting] = lean + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

// The interpreter's dispatch (a load and an indirect jump) repeated behind every
// op instead of shared by all: a third faster, as each jump is predicted by
// itself. LLVM does it for computed gotos, and with these limits for a switch.
let interpreter: [SwiftSetting] =
    hot + [
        .unsafeFlags([
            "-Xllvm", "-tail-dup-size=16", "-Xllvm", "-tail-dup-pred-size=1000", "-Xllvm", "-tail-dup-succ-size=1000",
        ])
    ]

let runtime: Target.Dependency = .product(name: "BatonRuntime", package: "Runtime")
/// What machines are made of: PCI, virtio, serial ports, and what boards and accelerators know of each other.
let devices: Target.Dependency = .product(name: "BatonDevices", package: "Devices")

func part(_ name: String, _ dependencies: [Target.Dependency] = [], settings: [SwiftSetting] = lean) -> Target {
    .target(name: name, dependencies: [runtime] + dependencies, path: "Sources/\(name)", swiftSettings: settings)
}

/// A module: its file's name says what it provides. A shared object without a
/// SONAME would name the directory that it was linked in. The installed runtime
/// is two directories up.
struct Module {
    var file: String
    var target: String
    var path: String
    var dependencies: [Target.Dependency] = []
    var isSwift = true

    var product: Product { .library(name: file, type: .dynamic, targets: [target]) }
    var declaration: Target {
        .target(
            name: target, dependencies: [runtime] + dependencies, path: "Plugins/\(path)",
            swiftSettings: isSwift ? lean : nil,
            linkerSettings: [
                .unsafeFlags(["-Xlinker", "-soname=lib\(file).so", "-Xlinker", "-rpath=$ORIGIN/../.."])
            ])
    }
}

let modules = [
    Module(
        file: "mode-liveupdate", target: "ModeLiveUpdate", path: "Modes/LiveUpdate", dependencies: ["CLiveUpdate"]),
    Module(file: "mode-reboot", target: "ModeReboot", path: "Modes/Reboot"),
    Module(file: "mode-restart", target: "ModeRestart", path: "Modes/Restart"),
    Module(file: "mode-transfer", target: "ModeTransfer", path: "Modes/Transfer"),
    Module(file: "memory-backend-file", target: "MemoryBackendFile", path: "Memory/File"),
    Module(file: "memory-backend-memfd", target: "MemoryBackendMemfd", path: "Memory/Memfd"),
    Module(file: "preserver-vhost-user", target: "PreserverVhostUser", path: "Preservers/VhostUser"),
    Module(
        file: "preserver-vhost-vsock", target: "PreserverVhostVsock", path: "Preservers/VhostVsock",
        dependencies: ["CVhost"]),
    Module(file: "preserver-vfio", target: "PreserverVFIO", path: "Preservers/VFIO", dependencies: ["VFIOPCI"]),
    Module(
        file: "preserver-vfio-user", target: "PreserverVFIOUser", path: "Preservers/VFIOUser",
        dependencies: ["VFIOPCI"]),
    Module(file: "preserver-tap", target: "PreserverTap", path: "Preservers/Tap"),
    // A foreign module: C, and all that it knows is baton-module.h.
    Module(file: "preserver-fd", target: "PreserverFD", path: "Preservers/FD", isSwift: false),
    Module(file: "preserver-harness-probe", target: "HarnessProbe", path: "Preservers/HarnessProbe"),
    Module(file: "accel-tcg", target: "AccelTCG", path: "Accelerators/TCG", dependencies: [devices, "RISCV"]),
    Module(
        file: "machine-microvm", target: "MachineMicroVM", path: "Machines/MicroVM", dependencies: [devices, "MicroVM"]),
    Module(file: "machine-virt", target: "MachineVirt", path: "Machines/Virt", dependencies: [devices, "VirtBoard"]),
    Module(file: "foreign-ffi", target: "ForeignFFI", path: "Foreign/Bridge", dependencies: ["CForeign"]),
]

// What wants liburing is built where that is.
let hasLiburing = access("/usr/include/liburing.h", R_OK) == 0
let uringModules =
    hasLiburing
    ? [Module(file: "block-io_uring", target: "BlockIOUring", path: "Block/IOUring", dependencies: ["CIOUring"])] : []
let uringTargets: [Target] =
    hasLiburing
    ? [.target(name: "CIOUring", path: "Plugins/Block/CIOUring", linkerSettings: [.linkedLibrary("uring")])] : []

// KVM's CPUs are the host's.
#if arch(x86_64)
let hostModules = [
    Module(file: "accel-kvm", target: "AccelKVM", path: "Accelerators/KVM", dependencies: [devices, "KVM"])
]
let hostTargets: [Target] = [
    .target(name: "CKVM", path: "Plugins/Accelerators/CKVM"),
    part("KVM", [devices, "CKVM"], settings: hot),
    .testTarget(name: "KVMTests", dependencies: ["KVM", "CKVM", devices, runtime], path: "Tests/KVMTests"),
    // Has KVM answer a VMM as a kernel with faults.
    .executableTarget(name: "kvm-faults", dependencies: ["CallNotices"], path: "Tests/KVMFaults"),
]
let hostTestTools: [Target.Dependency] = ["kvm-faults"]
#else
let hostModules: [Module] = []
let hostTargets: [Target] = []
let hostTestTools: [Target.Dependency] = []
#endif

/// For Tests/Fuzzers: parts that are in no library, so that their insides can be looked into.
let fuzzedParts =
    ["RISCV", "Chardev", "Monitor", "Firmware", "MicroVM", "VirtBoard"] + (hostModules.isEmpty ? [] : ["KVM"])
let fuzzedProducts: [Product] =
    getenv("BATON_FUZZ") == nil ? [] : [.library(name: "BatonParts", targets: fuzzedParts)]

/// An executable finds the runtime beside itself, and installed in ../lib.
let installed: [LinkerSetting] = [.unsafeFlags(["-Xlinker", "-rpath=$ORIGIN/../lib"])]

let package = Package(
    name: "baton",
    products: [
        .executable(name: "baton", targets: ["baton"]),
        .executable(name: "baton-ctl", targets: ["baton-ctl"]),
        .executable(name: "baton-demo", targets: ["baton-demo"]),
        .executable(name: "baton-harness", targets: ["baton-harness"]),
        // The tests' own, broken on purpose: named so that nothing finds, loads or installs it.
        .library(name: "broken-mode", type: .dynamic, targets: ["BrokenMode"]),
    ] + fuzzedProducts + (modules + uringModules + hostModules).map(\.product),
    dependencies: [
        .package(path: "Sources/Runtime"),
        .package(path: "Sources/Devices"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    ],
    targets: [
        .target(name: "SoftFloat", path: "Sources/SoftFloat", swiftSettings: hot),
        part("RISCV", ["SoftFloat", devices], settings: interpreter),
        part("Chardev"),
        part("Monitor"),
        // Of the modules for VFIO and vfio-user, in each of which it is a copy.
        part("VFIOPCI"),
        // What boards that start firmware or a kernel have in common; a copy in each one's module.
        part("Firmware"),
        part("MicroVM", [devices, "Firmware"]),
        part("VirtBoard", [devices, "Firmware"]),
        .executableTarget(
            name: "baton", dependencies: [runtime, devices, "Chardev", "Monitor"],
            path: "Sources/baton", swiftSettings: lean, linkerSettings: installed,
            plugins: [.plugin(name: "StampRevision", package: "Runtime")]),
        .executableTarget(
            name: "baton-ctl",
            dependencies: [runtime, .product(name: "ArgumentParser", package: "swift-argument-parser")],
            path: "Sources/baton-ctl", linkerSettings: installed),
        .executableTarget(
            name: "baton-demo",
            dependencies: [
                "ProcessSupport", "HarnessSystem", "Harness", "Soak",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Sources/baton-demo"),
        // Random steps on machines of the harness, and the shortest list of them that fails.
        .target(name: "Soak", dependencies: ["Harness", "ProcessSupport"], path: "Sources/Soak"),
        .target(name: "ProcessSupport", dependencies: ["HarnessSystem"], path: "Sources/ProcessSupport"),
        .target(name: "HarnessSystem", path: "Sources/HarnessSystem"),
        .target(name: "Harness", dependencies: [runtime, "ProcessSupport", "HarnessSystem"], path: "Sources/Harness"),
        .executableTarget(
            name: "baton-harness",
            dependencies: ["Harness", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            path: "Sources/baton-harness", linkerSettings: installed),

        // The kernel's interface for live updates, and the process that holds a session of it.
        .target(name: "CLiveUpdate", path: "Plugins/Modes/CLiveUpdate"),
        // The kernel's interface for virtio devices that it serves.
        .target(name: "CVhost", dependencies: [runtime], path: "Plugins/Preservers/CVhost"),
        .target(name: "CForeign", path: "Plugins/Foreign/CForeign", linkerSettings: [.linkedLibrary("ffi")]),

        .target(name: "TestSupport", dependencies: ["ProcessSupport"], path: "Tests/TestSupport"),
        .target(name: "DeviceTestSupport", dependencies: [runtime], path: "Tests/DeviceTestSupport"),
        .target(name: "BrokenMode", dependencies: [runtime], path: "Tests/BrokenMode", swiftSettings: lean),
        .target(
            name: "HostFloat", path: "Tests/HostFloat",
            cSettings: [.unsafeFlags(["-frounding-math", "-ftrapping-math", "-ffp-contract=off"])]),
        .testTarget(name: "SoftFloatTests", dependencies: ["SoftFloat", "HostFloat"], path: "Tests/SoftFloatTests"),
        .testTarget(
            name: "RISCVTests", dependencies: ["RISCV", "TestSupport", runtime, devices], path: "Tests/RISCVTests"),
        .testTarget(
            name: "DeviceTests",
            dependencies: ["RISCV", "VirtBoard", "Firmware", "DeviceTestSupport", "TestSupport", runtime, devices],
            path: "Tests/DeviceTests"),
        .testTarget(
            name: "MicroVMTests", dependencies: ["MicroVM", "Firmware", "TestSupport", runtime, devices],
            path: "Tests/MicroVMTests"),
        .testTarget(
            name: "MicroVMDeviceTests",
            dependencies: ["MicroVM", "DeviceTestSupport", "TestSupport", runtime, devices],
            path: "Tests/MicroVMDeviceTests"),
        .testTarget(name: "RuntimeTests", dependencies: ["TestSupport", runtime], path: "Tests/RuntimeTests"),
        .testTarget(
            name: "MonitorTests", dependencies: ["Monitor", "Chardev", "TestSupport", runtime],
            path: "Tests/MonitorTests"),
        // Reads the sources: what the compiler does not keep of the tree's structure.
        .testTarget(name: "ProjectTests", dependencies: ["TestSupport"], path: "Tests/ProjectTests"),
        // Installs the Debian packages beside a systemd of its own.
        .testTarget(name: "PackageTests", dependencies: ["TestSupport"], path: "Tests/PackageTests"),
        .testTarget(name: "DemoTests", dependencies: ["TestSupport"], path: "Tests/DemoTests"),
        .testTarget(name: "SoakTests", dependencies: ["Soak", "TestSupport"], path: "Tests/SoakTests"),
        .testTarget(
            name: "HarnessTests", dependencies: ["Harness", "TestSupport", runtime], path: "Tests/HarnessTests"),
        // Stops or kills a VMM at one of its system calls.
        .executableTarget(name: "call-tracer", path: "Tests/CallTracer"),
        .testTarget(
            name: "BatonTests", dependencies: ["TestSupport", "call-tracer", "liveupdate-kernel"] + hostTestTools,
            path: "Tests/BatonTests", exclude: ["Checkpoints"]),
        // Answers the VMM's VFIO system calls, for a machine without such devices.
        .executableTarget(name: "vfio-simulator", dependencies: ["CallNotices"], path: "Tests/VFIOSimulator"),
        // Answers the VMM as Linux' Live Update Orchestrator, over as many kernels as a test likes.
        .executableTarget(name: "liveupdate-kernel", dependencies: ["CallNotices"], path: "Tests/LiveUpdateKernel"),
        // What programs have in common that answer system calls in the kernel's place.
        .target(name: "CallNotices", path: "Tests/CallNotices"),
        .testTarget(name: "VFIOTests", dependencies: ["TestSupport", "vfio-simulator"], path: "Tests/VFIOTests"),
        .executableTarget(name: "vfio-user-server", path: "Tests/VFIOUserServer"),
        .testTarget(
            name: "VFIOUserTests", dependencies: ["TestSupport", "vfio-user-server"], path: "Tests/VFIOUserTests",
            exclude: ["Library"]),
        .testTarget(
            name: "VhostUserTests", dependencies: ["TestSupport", "vhost-simulator"], path: "Tests/VhostUserTests"),
        // Answers the VMM's calls to the kernel's vhost-vsock.
        .executableTarget(name: "vhost-simulator", dependencies: ["CallNotices"], path: "Tests/VhostSimulator"),
    ] + hostTargets + uringTargets + (modules + uringModules + hostModules).map(\.declaration),
    swiftLanguageModes: [.v5]
)
