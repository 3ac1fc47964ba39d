import Foundation

/// A module in C that a test makes.
public enum CModule {
    /// Compiles the source of a module, to which the descriptor is added, and
    /// returns the module's path.
    /// - Parameters:
    ///   - source: has the tables `methods` and those that `tables` names.
    ///   - tables: of `commands` and `events`.
    public static func build(
        kind: String, name: String, _ source: String, tables: [String] = [], in directory: TemporaryDirectory
    ) throws -> String {
        guard let compiler = Products.find("clang") else { throw TestError("there is no clang") }
        let fields = (["methods"] + tables).map { ".\($0) = \($0), .\($0.dropLast())_count = BATON_COUNT(\($0))," }
        let descriptor = """

            const struct baton_module_descriptor *baton_module_query(void);
            const struct baton_module_descriptor *baton_module_query(void) {
                static const struct baton_module_descriptor descriptor = {
                    .magic = BATON_MODULE_MAGIC, .size = sizeof descriptor, .abi = BATON_MODULE_ABI,
                    .kind = "\(kind)", .name = "\(name)", .version = "1",
                    \(fields.joined(separator: "\n"))
                };
                return &descriptor;
            }

            """
        let input = try directory.write("\(kind)-\(name).c", "#include <baton-module.h>\n" + source + descriptor)
        let output = directory.file("lib\(kind)-\(name).so")
        _ = try ChildProcess.run([
            compiler, "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC", "-I", Products.headers, "-o", output, input,
        ])
        return output
    }
}
