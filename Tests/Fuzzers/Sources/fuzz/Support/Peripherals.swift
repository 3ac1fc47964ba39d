import BatonRuntime
import CBaton
import Glibc
import Virtio

/// A chardev whose peer is the input.
final class InputChardev: Chardev {
    /// Bytes that the peer takes; behind these the device has to wait.
    var room = Int.max

    init(_ id: String) { super.init(id: id, backend: "input") }

    /// Whether to keep what the device has sent.
    var keepsOutput = false
    private(set) var written: [UInt8] = []
    func forgetOutput() { written = [] }

    override func didAttach() { frontend?.chardevEvent(.opened) }

    override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        let count = min(room, bytes.count)
        if keepsOutput { written += bytes[..<count] }
        if room != Int.max { room -= count }
        return count
    }

    /// The peer sends so many bytes, as many as the device takes.
    func type(_ bytes: [UInt8]) {
        guard let frontend else { return }
        let count = min(frontend.chardevCanReceive(), bytes.count)
        guard count > 0 else { return }
        bytes[..<count].withUnsafeBytes { frontend.chardevReceive($0) }
    }
}

/// A network that the input sends from.
final class InputNetwork: NetBackend {
    override var queueCount: Int { 2 }
    override var carriesHeaders: Bool { true }

    init(_ id: String) { super.init(id: id, backend: "input") }

    override func useQueues(_ count: Int) -> Bool { true }

    func deliver(_ input: inout Input) {
        var header = FrameHeader()
        header.flags = input.byte()
        header.segmentation = input.byte()
        let queue = Int(input.byte() & 1)
        let frame = [UInt8](repeating: 7, count: 1 + Int(input.number(UInt16.self)))
        frame.withUnsafeBytes { _ = deliver($0, header: header, queue: queue) }
    }
}

/// A disk's engine that does nothing, at once.
final class IdleEngine: BlockEngine, BlockEngineType {
    let summary = "does nothing"
    private var ended = BlockRequestList()
    private var eventFD: Int32 = -1
    /// The error that requests end with; 0: none.
    var error: Int32 = 0

    init() { super.init(name: "idle") }

    func make() -> BlockEngine { self }
    override func start() throws(VMMError) { eventFD = cbaton_eventfd() }
    override var event: Int32 { eventFD }
    override func add(_ request: UnsafeMutablePointer<BlockRequest>) {
        request.pointee.result = error == 0 ? request.pointee.pieceLength : -Int(error)
        ended.append(request)
        var one: UInt64 = 1
        _ = write(eventFD, &one, 8)
    }
    override func reap() -> UnsafeMutablePointer<BlockRequest>? { ended.removeAll() }
    override func stop() { close(eventFD) }
}

/// Memory of a machine, of no file.
func makeRAM(_ name: String, _ size: Int) throws(VMMError) -> RAMBlock {
    let host = try Mapping.map(length: size, alignment: 4096, fd: -1, shared: false, name: name)
    return RAMBlock(
        name: name, usedLength: size, maxLength: size, alignment: 4096, host: host, fd: -1, shared: false,
        origin: "anonymous")
}
