import BatonRuntime

/// The kernel's command line.
public enum KernelCommandLine {
    /// What `auto-kernel-cmdline=on` appends without ACPI, by which a kernel finds the virtio-mmio devices:
    /// ` virtio_mmio.device=512@0xfeb00e00:12` for each.
    /// - Parameters:
    ///   - slots: those in use, in the order of the words.
    ///   - interruptBase: the interrupt of slot 0.
    public static func virtioWords(slots: [Int], interruptBase: Int) -> String {
        slots.map { slot in
            let address = MemoryMap.virtioSlot(slot)
            return " virtio_mmio.device=\(MemoryMap.virtioStride)@\(Hex(address)):\(interruptBase + slot)"
        }.joined()
    }

    /// The bytes in memory, with the zero at the end.
    /// - Parameter limit: bytes without the zero.
    static func bytes(_ text: String, limit: Int) throws(VMMError) -> [UInt8] {
        let bytes = Array(text.utf8)
        guard !bytes.contains(0) else { throw VMMError("the kernel's command line has a zero byte in it") }
        guard bytes.count <= limit else {
            throw VMMError(
                "the kernel's command line has \(bytes.count) bytes, of which the kernel takes \(limit)",
                hint: "Shorten what -append gives.")
        }
        return bytes + [0]
    }
}
