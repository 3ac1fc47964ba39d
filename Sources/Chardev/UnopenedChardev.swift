import BatonRuntime

/// Stands for a chardev that a trial run would have to open: there is nobody
/// at its other end.
final class UnopenedChardev: Chardev {
    override var isOpen: Bool { false }
    override var survivesUpdate: Bool { true }
}
