import Glibc

/// Descriptors that QMP clients have given with `getfd`, by name, until a
/// command takes one. Owns them.
public final class NamedFDs {
    /// Names that clients can have at a time.
    static let limit = 1024
    private var entries: [(name: String, fd: Int32)] = []

    init() {}

    /// Keeps a descriptor under a name; one that was there before is closed.
    /// - Throws: an error when there are too many; `fd` is closed then.
    public func add(_ name: String, _ fd: consuming OwnedFD) throws(VMMError) {
        try close(name, mustExist: false)
        guard entries.count < NamedFDs.limit else {
            throw VMMError("there are \(NamedFDs.limit) named file descriptors already", hint: "Use closefd.")
        }
        entries.append((name, fd.release()))
    }

    /// A descriptor, which stays here. Borrowed.
    public func find(_ name: String) -> Int32? { entries.first { $0.name == name }?.fd }

    /// Gives a descriptor up to the caller, who owns it now.
    @discardableResult
    public func release(_ name: String) -> Int32? {
        guard let index = entries.firstIndex(where: { $0.name == name }) else { return nil }
        return entries.remove(at: index).fd
    }

    /// Closes a descriptor.
    /// - Throws: QEMU's error when there is none of that name.
    public func close(_ name: String) throws(VMMError) { try close(name, mustExist: true) }

    private func close(_ name: String, mustExist: Bool) throws(VMMError) {
        if let fd = release(name) {
            Glibc.close(fd)
        } else if mustExist {
            throw VMMError("File descriptor named '\(name)' not found")
        }
    }
}
