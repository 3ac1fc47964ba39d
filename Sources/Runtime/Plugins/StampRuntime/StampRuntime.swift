import Foundation
import PackagePlugin

/// Generates the runtime's fingerprint from the sources of all its targets, and of the devices' library, before
/// each build that changes one of them.
@main
struct StampRuntime: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: Target) throws -> [Command] {
        let output = context.pluginWorkDirectoryURL.appending(path: "Fingerprint.swift")
        // Its own output is among the files of the target that uses it.
        let modules = [target] + target.recursiveTargetDependencies
        let inputs =
            modules.compactMap(\.sourceModule).flatMap { $0.sourceFiles.map(\.url) + headers(of: $0) }
            .filter { ["swift", "c", "h"].contains($0.pathExtension) && $0 != output }
            + devices(beside: context.package.directoryURL)
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

    /// The sources of the devices' library, which modules are compiled against as they are against the runtime.
    private func devices(beside package: URL) -> [URL] {
        let directory = package.appending(path: "../Devices/Sources").standardizedFileURL
        let files = FileManager.default.enumerator(at: directory, includingPropertiesForKeys: nil)
        return (files?.compactMap { $0 as? URL } ?? []).filter { $0.pathExtension == "swift" }
            .sorted { $0.path() < $1.path() }
    }

    /// What C declares for Swift, which is not among a target's source files.
    private func headers(of module: any SourceModuleTarget) -> [URL] {
        guard let directory = (module as? ClangSourceModuleTarget)?.publicHeadersDirectoryURL else { return [] }
        let files = try? FileManager.default.contentsOfDirectory(at: directory, includingPropertiesForKeys: nil)
        return (files ?? []).sorted { $0.path() < $1.path() }
    }
}
