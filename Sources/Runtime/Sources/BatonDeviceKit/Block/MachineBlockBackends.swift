import BatonBase
import BatonMachine

/// The block back ends of a machine.
final class BlockBackends: MachineParts {
    fileprivate var inOrder: [BlockBackend] = []
}

extension VirtualMachine {
    /// Block back ends in order of creation.
    public var blockBackends: [BlockBackend] { parts(BlockBackends.self).inOrder }

    /// - Throws: QEMU's error when the id is taken.
    public func add(_ backend: BlockBackend) throws(VMMError) {
        try requireFreeDisk(backend.id)
        parts(BlockBackends.self).inOrder.append(backend)
    }

    /// Takes a back end away that no device uses: its file is closed when nobody has it any more.
    /// - Throws: QEMU's errors when there is none, or it is in use.
    public func removeBlockBackend(_ id: String) throws(VMMError) {
        guard let backend = blockBackend(id) else { throw VMMError("Failed to find node with node-name='\(id)'") }
        guard backend.user == nil else { throw VMMError("Node \(id) is in use") }
        parts(BlockBackends.self).inOrder.removeAll { $0 === backend }
    }

    public func blockBackend(_ id: String) -> BlockBackend? { blockBackends.first { $0.id == id } }
}
