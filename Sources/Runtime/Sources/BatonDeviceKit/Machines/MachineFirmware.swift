/// `-bios`: a file, or one of the names of what is none.
public enum MachineFirmware: Equatable {
    /// `default`, or nothing: what the machine has itself.
    case builtin
    /// `none`
    case none
    case file(String)

    /// - Parameter argument: of `-bios`; nil when it was not given.
    public init(argument: String?) {
        switch argument {
        case nil, "default": self = .builtin
        case "none": self = .none
        case .some(let path): self = .file(path)
        }
    }

    /// The file; nil when it is none.
    public var path: String? {
        guard case .file(let path) = self else { return nil }
        return path
    }
}
