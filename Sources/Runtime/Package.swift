// swift-tools-version:6.1
import Glibc
import PackageDescription

/// For `make fuzz` (Tests/Fuzzers): code counts what it comes through.
let coverage: [SwiftSetting] =
    getenv("BATON_FUZZ") == nil ? [] : [.unsafeFlags(["-Xfrontend", "-sanitize=fuzzer"])]

/// No implicit imports of modules whose libraries every start would have to map.
let lean: [SwiftSetting] =
    [
        .unsafeFlags([
            "-Xfrontend", "-disable-implicit-concurrency-module-import",
            "-Xfrontend", "-disable-implicit-string-processing-module-import",
        ])
    ] + coverage

/// Of what the guest waits for, device by device.
let hot: [SwiftSetting] = lean + [.unsafeFlags(["-enforce-exclusivity=unchecked"])]

/// The floors of the runtime, from the lowest up. Each may import those before it and no other: the compiler keeps
/// that, as a target sees the modules of its dependencies only.
let floors = ["BatonBase", "BatonQMP", "BatonMachine", "BatonDeviceKit", "BatonCPR", "BatonModules"]

func floor(_ index: Int) -> Target {
    .target(
        name: floors[index],
        dependencies: ["CBaton"] + floors[..<index].map { .init(stringLiteral: $0) },
        path: "Sources/\(floors[index])",
        swiftSettings: ["BatonMachine", "BatonDeviceKit"].contains(floors[index]) ? hot : lean)
}

// A package of its own so that its one dynamic library is linked, and not
// copied, into the executable and every module: SwiftPM links a target
// statically into each product of the package that it belongs to.
let package = Package(
    name: "Runtime",
    products: [
        .library(name: "BatonRuntime", type: .dynamic, targets: ["BatonRuntime"] + floors + ["CBaton"]),
        .plugin(name: "StampRevision", targets: ["StampRevision"]),
    ],
    targets: [
        .target(name: "CBaton", path: "Sources/CBaton"),
        .executableTarget(name: "fingerprint", path: "Sources/fingerprint"),
        .plugin(
            name: "StampRuntime", capability: .buildTool(), dependencies: ["fingerprint"],
            path: "Plugins/StampRuntime"),
        .plugin(
            name: "StampRevision", capability: .buildTool(), dependencies: ["fingerprint"],
            path: "Plugins/StampRevision"),
        // The roof: what modules import. It re-exports the floors and carries the stamp of them all.
        .target(
            name: "BatonRuntime",
            dependencies: ["CBaton"] + floors.map { .init(stringLiteral: $0) },
            path: "Sources/BatonRuntime", swiftSettings: lean,
            linkerSettings: [.unsafeFlags(["-Xlinker", "-soname=libBatonRuntime.so"])],
            plugins: ["StampRuntime"]),
    ] + floors.indices.map(floor),
    swiftLanguageModes: [.v5]
)
