import BatonRuntime

/// `-fw_cfg [name=]NAME,file=FILE` or `,string=TEXT`: an item for the guest.
package struct FwCfgOption: Equatable {
    package enum Source: Equatable {
        case file(String)
        case string(String)
    }

    package let name: String
    package let source: Source
    /// Bytes of the largest file: its size has 32 bits in the directory.
    private static let sizeLimit: UInt64 = 64 << 20

    /// What is to be said about a name, if anything.
    package var warning: String? {
        name.hasPrefix("opt/") ? nil : "externally provided fw_cfg item names should be prefixed with \"opt/\""
    }

    /// Parses the option's argument.
    package init(_ options: KeyValueOptions) throws(VMMError) {
        let name = try options.string("name")
        let file = try options.string("file")
        let string = try options.string("string")
        try options.finish()
        guard let name, !name.isEmpty else { throw VMMError("invalid argument(s)", hint: FwCfgOption.hint) }
        switch (file, string) {
        case (let path?, nil): source = .file(path)
        case (nil, let text?): source = .string(text)
        default: throw VMMError("invalid argument(s)", hint: FwCfgOption.hint)
        }
        self.name = try FwCfgFile(name, []).name
    }

    private static let hint = "Give a name and either a file or a string: -fw_cfg name=opt/NAME,string=TEXT."

    /// The item, whose file is read now.
    package func file() throws(VMMError) -> FwCfgFile {
        switch source {
        // Without a zero at the end, as in QEMU.
        case .string(let text): return try FwCfgFile(name, Array(text.utf8))
        case .file(let path):
            let bytes = try attempt("can't load \(path)") { () throws(VMMError) in
                try FileBytes.read(path, limit: FwCfgOption.sizeLimit).bytes
            }
            return try FwCfgFile(name, bytes)
        }
    }
}
