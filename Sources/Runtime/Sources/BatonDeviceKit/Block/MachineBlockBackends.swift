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

    public func blockBackend(_ id: String) -> BlockBackend? { blockBackends.first { $0.id == id } }
}
