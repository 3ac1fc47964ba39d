import BatonRuntime
import Foundation
import TestSupport

extension ModuleLoader {
    /// Why a module is not loaded, or "loaded".
    func refusal(of path: String) -> String {
        do {
            try load(path: path)
            return "loaded"
        } catch {
            return error.description
        }
    }
}

extension TemporaryDirectory {
    /// A good module at a path below.
    func copyOfRestart(_ name: String) throws -> String {
        let path = file(name)
        try FileManager.default.createDirectory(
            atPath: (path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        try FileManager.default.copyItem(atPath: Products.module("mode-restart"), toPath: path)
        return path
    }
}
