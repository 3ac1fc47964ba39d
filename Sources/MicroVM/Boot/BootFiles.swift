/// The files that the machine starts from, as the command line names them.
public struct BootFiles: Equatable {
    /// `-bios`: firmware to start with; nil to start the kernel directly.
    public var firmware: String?
    public var kernel: String?
    public var initrd: String?
    /// `-append`, with what `auto-kernel-cmdline` adds.
    public var commandLine = ""

    public init() {}
}
