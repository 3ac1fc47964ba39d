import BatonRuntime
import Glibc

/// Stands for a chardev that a trial run would have to open: there is nobody
/// at its other end.
final class UnopenedChardev: Chardev {
    override var isOpen: Bool { false }
    override var survivesUpdate: Bool { true }

    /// Checks that a file can be written or made, or a socket made, without
    /// doing it.
    static func checkWritable(_ path: String) throws(VMMError) {
        if access(path, W_OK) == 0 { return }
        guard errno == ENOENT else { throw .system("Could not open '\(path)'") }
        guard access(FD.directory(of: path), W_OK | X_OK) == 0 else { throw .system("Could not open '\(path)'") }
    }
}
