import BatonBase

/// Gives every block without a backend of its own a memfd, so that it can be
/// found by name after the exec: flash, ROM, device memory. For modes that
/// replace the process.
public final class MemfdAllocator: AllocatorHook {
    public let hookName: String

    /// - Parameter hookName: the mode's name.
    public init(hookName: String) { self.hookName = hookName }

    public func allocate(_ request: RAMRequest, memory: GuestMemory) throws(VMMError) -> RAMBlock? {
        let block = try memory.preservedBlock(request, shared: true, origin: hookName) { () throws(VMMError) in
            try Mapping.createMemfd(name: request.name, length: request.maxLength, sealSize: true).release()
        }
        Log.trace(
            "anon_memfd_alloc",
            "\(request.name) size \(Hex(request.maxLength)) ptr \(Hex(UInt64(UInt(bitPattern: block.host)))) "
                + "fd \(block.fd)")
        return block
    }
}
