import BatonRuntime
import CBaton
import Glibc
import Virtio

extension BlockBackend {
    convenience init(id: String, filename: String, readOnly: Bool, formatIsKnown: Bool) throws(VMMError) {
        var settings = BlockSettings()
        settings.formatIsKnown = formatIsKnown
        try self.init(id: id, filename: filename, readOnly: readOnly, settings: settings)
    }

    convenience init(id: String, filename: String, readOnly: Bool, isLocked: Bool) throws(VMMError) {
        var settings = BlockSettings()
        settings.isLocked = isLocked
        try self.init(id: id, filename: filename, readOnly: readOnly, settings: settings)
    }
}

extension VirtioBlock {
    convenience init(vm: VirtualMachine, backend: BlockBackend, serial: String) {
        var properties = Properties()
        properties.serial = serial
        self.init(vm: vm, backend: backend, properties: properties)
    }
}

/// A disk's engine that ends requests when a test says so, and as it says.
final class HeldEngine: BlockEngine, BlockEngineType {
    let summary = "held by a test"
    private(set) var held: [UnsafeMutablePointer<BlockRequest>] = []
    private var ended = BlockRequestList()
    private(set) var submissions = 0
    private var eventFD: Int32 = -1

    init() { super.init(name: "held") }

    func make() -> BlockEngine { self }

    override func start() throws(VMMError) { eventFD = cbaton_eventfd() }
    override var event: Int32 { eventFD }
    override func add(_ request: UnsafeMutablePointer<BlockRequest>) { held.append(request) }
    override func submit() -> Bool {
        submissions += 1
        return true
    }
    override func reap() -> UnsafeMutablePointer<BlockRequest>? { ended.removeAll() }
    override func stop() { close(eventFD) }

    /// Ends one that is held: with all that it asks for, or with an error.
    func end(_ index: Int, error: Int32 = 0) {
        let request = held.remove(at: index)
        request.pointee.result = error == 0 ? request.pointee.pieceLength : -Int(error)
        ended.append(request)
        var one: UInt64 = 1
        _ = write(eventFD, &one, 8)
    }
}
