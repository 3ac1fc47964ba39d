// swift-tools-version:6.1
import PackageDescription

// A package of its own so that its one dynamic library is linked, and not
// copied, into the executable and every module: SwiftPM links a target
// statically into each product of the package that it belongs to.
let package = Package(
    name: "Runtime",
    products: [
        .library(name: "BatonRuntime", type: .dynamic, targets: ["BatonRuntime", "CBaton"]),
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
        .target(
            name: "BatonRuntime",
            dependencies: ["CBaton"],
            path: "Sources/BatonRuntime",
            swiftSettings: [
                .unsafeFlags([
                    "-Xfrontend", "-disable-implicit-concurrency-module-import",
                    "-Xfrontend", "-disable-implicit-string-processing-module-import",
                ])
            ],
            linkerSettings: [.unsafeFlags(["-Xlinker", "-soname=libBatonRuntime.so"])],
            plugins: ["StampRuntime"]),
    ],
    swiftLanguageModes: [.v5]
)
