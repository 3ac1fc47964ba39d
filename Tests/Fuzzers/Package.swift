// swift-tools-version:6.1
import Glibc
import PackageDescription

// Built by `make fuzz`, which says in BATON_FUZZ where the toolchain has libFuzzer without its `main`. The packages that
// this one depends on see the variable too, and have their code count what an input reaches.
let libFuzzer = getenv("BATON_FUZZ").map { String(cString: $0) }

let package = Package(
    name: "Fuzzers",
    dependencies: [
        .package(name: "baton", path: "../.."),
        .package(path: "../../Sources/Runtime"),
        .package(path: "../../Sources/Devices"),
    ],
    targets: [
        .executableTarget(
            name: "fuzz",
            dependencies: [
                .product(name: "BatonRuntime", package: "Runtime"),
                .product(name: "BatonDevices", package: "Devices"),
                .product(name: "BatonParts", package: "baton"),
                .product(name: "preserver-vhost-user", package: "baton"),
                .product(name: "preserver-vfio-user", package: "baton"),
                .product(name: "foreign-ffi", package: "baton"),
            ],
            linkerSettings: libFuzzer.map { [.unsafeFlags(["-Xlinker", $0]), .linkedLibrary("stdc++")] } ?? [])
    ],
    swiftLanguageModes: [.v5]
)
