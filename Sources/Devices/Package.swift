// swift-tools-version:6.1
import Glibc
import PackageDescription

/// For `make fuzz` (Tests/Fuzzers): code counts what it comes through.
let coverage: [SwiftSetting] =
    getenv("BATON_FUZZ") == nil ? [] : [.unsafeFlags(["-Xfrontend", "-sanitize=fuzzer"])]

/// As in the runtime's package: nothing that every start would have to map, and no checks that devices would pay for.
let hot: [SwiftSetting] =
    [
        .unsafeFlags([
            "-Xfrontend", "-disable-implicit-concurrency-module-import",
            "-Xfrontend", "-disable-implicit-string-processing-module-import",
            "-enforce-exclusivity=unchecked",
        ])
    ] + coverage

let runtime: Target.Dependency = .product(name: "BatonRuntime", package: "Runtime")

/// What machines are made of. Each may be used alone, but for those that name others.
let parts = ["GuestHealth", "InstructionSets", "PCI", "Serial", "Virtio"]
let dependencies: [String: [Target.Dependency]] = ["GuestHealth": ["PCI"]]

// A package of its own, and one dynamic library, for the same reason as the runtime's: machines are modules, and the
// command line makes the devices that are plugged into them, so both must mean the same types.
let package = Package(
    name: "Devices",
    products: [.library(name: "BatonDevices", type: .dynamic, targets: ["BatonDevices"] + parts)],
    dependencies: [.package(path: "../Runtime")],
    targets: [
        // The roof: it has the library's name.
        .target(
            name: "BatonDevices", dependencies: parts.map { .init(stringLiteral: $0) }, swiftSettings: hot,
            linkerSettings: [.unsafeFlags(["-Xlinker", "-soname=libBatonDevices.so", "-Xlinker", "-rpath=$ORIGIN"])])
    ] + parts.map { .target(name: $0, dependencies: [runtime] + (dependencies[$0] ?? []), swiftSettings: hot) },
    swiftLanguageModes: [.v5]
)
