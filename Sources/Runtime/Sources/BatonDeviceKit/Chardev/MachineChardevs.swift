import BatonBase
import BatonMachine

/// The chardevs of a machine.
final class Chardevs: MachineParts {
    fileprivate var inOrder: [Chardev] = []
    fileprivate var byID: [String: Chardev] = [:]
    fileprivate weak var monitorInUse: Chardev?
}

extension VirtualMachine {
    /// Chardevs in order of creation.
    public var chardevs: [Chardev] { parts(Chardevs.self).inOrder }

    /// - Throws: QEMU's error when the id is taken.
    public func add(_ chardev: Chardev) throws(VMMError) {
        let list = parts(Chardevs.self)
        guard list.byID[chardev.id] == nil else { throw VMMError("Duplicate ID '\(chardev.id)' for chardev") }
        list.inOrder.append(chardev)
        list.byID[chardev.id] = chardev
    }

    /// Forgets a chardev that nothing uses any more. Whoever has it shuts it down.
    public func remove(_ chardev: Chardev) {
        let list = parts(Chardevs.self)
        list.inOrder.removeAll { $0 === chardev }
        if list.byID[chardev.id] === chardev { list.byID[chardev.id] = nil }
    }

    public func chardev(_ id: String) -> Chardev? { parts(Chardevs.self).byID[id] }

    /// The chardev of the monitor whose command is being carried out. Not retained.
    public var monitorInUse: Chardev? {
        get { parts(Chardevs.self).monitorInUse }
        set { parts(Chardevs.self).monitorInUse = newValue }
    }
}
