import BatonRuntime

/// The control queue (virtio 1.2, 5.6.6.2): task management, and what a driver wants to be told of.
extension VirtioSCSI {
    private enum Kind {
        static let taskManagement: UInt32 = 0
        static let queryEvents: UInt32 = 1
        static let subscribeEvents: UInt32 = 2
    }

    private enum Function {
        static let clearACA: UInt32 = 2
        static let resetNexus: UInt32 = 4
        static let queryTask: UInt32 = 6
        static let queryTaskSet: UInt32 = 7
    }

    private enum Response {
        static let complete: UInt8 = 0
        static let badTarget: UInt8 = 3
        static let succeeded: UInt8 = 10
        static let rejected: UInt8 = 11
        static let wrongLUN: UInt8 = 12
    }

    func serveControl(_ queue: VirtQueue) {
        isControlWaiting = false
        serveChains(queue) { chain in
            withUnsafeTemporaryAllocation(byteCount: 24, alignment: 8) { bytes in
                let count = queue.copyOut(chain, offset: 0, to: bytes)
                let kind = count >= 4 ? bytes.load(as: UInt32.self).littleEndian : .max
                switch kind {
                case Kind.taskManagement where count == 24 && chain.writableBytes >= 1:
                    guard let response = manage(UnsafeRawBufferPointer(bytes)) else {
                        isControlWaiting = true
                        return .stopped
                    }
                    return .used(withUnsafeBytes(of: response) { queue.copyIn(chain, offset: 0, from: $0) })
                case Kind.queryEvents, Kind.subscribeEvents:
                    // None of these events is there.
                    guard count >= 16, chain.writableBytes >= 5 else { break }
                    let none: [UInt8] = [0, 0, 0, 0, Response.complete]
                    return .used(none.withUnsafeBytes { queue.copyIn(chain, offset: 0, from: $0) })
                default: break
                }
                fail("control request of type \(kind) with \(chain.readableBytes) bytes")
                return .stopped
            }
        }
    }

    /// What the engines have is not taken back: a function that ends tasks is complete when they are.
    /// - Returns: nil when it is to be tried again when a request has ended.
    private func manage(_ bytes: UnsafeRawBufferPointer) -> UInt8? {
        let function = bytes.load(fromByteOffset: 4, as: UInt32.self).littleEndian
        guard let (target, lun) = address(UnsafeRawBufferPointer(rebasing: bytes[8..<16])), !luns(of: target).isEmpty
        else { return Response.badTarget }
        let all = function == Function.resetNexus
        let concerned = disks.filter { $0.target == target && (all || $0.lun == lun) }
        guard !concerned.isEmpty else { return Response.wrongLUN }
        let isBusy = concerned.contains { $0.backend.inHand > 0 }
        switch function {
        case Function.queryTask, Function.queryTaskSet: return isBusy ? Response.succeeded : Response.complete
        case 0...5 where function != Function.clearACA: return isBusy ? nil : Response.complete
        default: return Response.rejected
        }
    }
}
