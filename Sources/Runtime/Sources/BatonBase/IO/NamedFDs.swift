import Glibc

/// Descriptors that QMP clients have given with `getfd`, by name, until a
/// command takes one. Owns them. They are preserved over an update that keeps
/// descriptors.
public final class NamedFDs {
    /// Names that clients can have at a time.
    static let limit = 1024
    private static let prefix = "getfd-"
    private var store = PreservedFDs()
    private var count = 0

    package init() {}

    /// Keeps the descriptors among those that outlive an exec; takes over what
    /// the process before had.
    package func keep(in store: PreservedFDs) {
        self.store = store
        count = store.entries.count { $0.name.hasPrefix(NamedFDs.prefix) }
    }

    /// Keeps a descriptor under a name; one that was there before is closed.
    /// - Throws: an error when there are too many; `fd` is closed then.
    public func add(_ name: String, _ fd: consuming OwnedFD) throws(VMMError) {
        if let old = release(name) { Glibc.close(old) }
        guard count < NamedFDs.limit else {
            throw VMMError("there are \(NamedFDs.limit) named file descriptors already", hint: "Use closefd.")
        }
        try store.save(NamedFDs.prefix + name, fd.raw)
        _ = fd.release()
        count += 1
    }

    /// A descriptor, which stays here. Borrowed.
    public func find(_ name: String) -> Int32? { store.find(NamedFDs.prefix + name) }

    /// Gives a descriptor up to the caller, who owns it now.
    @discardableResult
    public func release(_ name: String) -> Int32? {
        guard let fd = find(name) else { return nil }
        store.delete(NamedFDs.prefix + name)
        count -= 1
        return fd
    }

    /// Gives the descriptor that an option means to the caller, who owns it now: one of a client's by its name, or one
    /// that this process was started with by its number.
    /// - Throws: QEMU's error when there is none.
    public func take(_ text: String) throws(VMMError) -> Int32 {
        guard let first = text.utf8.first, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first) else {
            guard let fd = release(text) else {
                throw VMMError("File descriptor named '\(text)' has not been found")
            }
            return fd
        }
        guard let number = SizeText.unsignedNumber(text), let fd = Int32(exactly: number), FD.isOpen(fd) else {
            throw VMMError("Invalid file descriptor number '\(text)'")
        }
        try FD.setCloseOnExec(fd, true)
        return fd
    }

    /// Closes a descriptor.
    /// - Throws: QEMU's error when there is none of that name.
    public func close(_ name: String) throws(VMMError) {
        guard let fd = release(name) else { throw VMMError("File descriptor named '\(name)' not found") }
        Glibc.close(fd)
    }
}
