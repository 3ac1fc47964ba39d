import Foundation
import PackagePlugin

/// Generates the runtime's fingerprint from its sources before each build that
/// changes one of them.
@main
struct StampRuntime: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
        guard let module = target.sourceModule else { return [] }
        var inputs = module.sourceFiles(withSuffix: ".swift").map(\.url)
        for dependency in module.dependencies {
            if case .target(let other) = dependency, let source = other.sourceModule {
                inputs += source.sourceFiles.map(\.url)
            }
        }
        let output = context.pluginWorkDirectoryURL.appending(path: "Fingerprint.swift")
        let tool = try context.tool(named: "fingerprint")
        #if compiler(>=6.4)
        let compiler = "swift-6.4+"
        #elseif compiler(>=6.3)
        let compiler = "swift-6.3"
        #else
        let compiler = "swift-6"
        #endif
        return [
            .buildCommand(
                displayName: "Stamping the runtime",
                executable: tool.url,
                arguments: [output.path(), compiler] + inputs.map { $0.path() },
                inputFiles: inputs,
                outputFiles: [output])
        ]
    }
}
