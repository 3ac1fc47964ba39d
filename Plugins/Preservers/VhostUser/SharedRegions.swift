import BatonRuntime

/// Guest RAM as a back end maps it: every writable range, by its descriptor.
///
/// Where the protocol wants addresses in the front end's memory, these are
/// guest-physical addresses: they mean nothing but a place in this table, so
/// they are right in every process that serves the guest, and tell the back
/// end nothing of ours.
struct SharedRegions {
    struct Region {
        let start: UInt64
        let size: UInt64
        /// Where the range starts in the descriptor.
        let offset: UInt64
        /// Borrowed from the RAM block.
        let fd: Int32
    }

    let regions: [Region]

    /// - Throws: QEMU's error when a range is not shared.
    init(_ space: AddressSpace) throws(VMMError) {
        var regions: [Region] = []
        for range in space.ramRanges where !range.readOnly {
            guard range.block.isPreservable else {
                throw VMMError(
                    "Failed initializing vhost-user memory map, consider using -object memory-backend-file share=on",
                    hint: "RAM block '\(range.block.name)' is not shared memory; memory-backend-memfd,share=on is too.")
            }
            let offset = UInt64(range.host - range.block.host)
            regions.append(Region(start: range.start, size: range.size, offset: offset, fd: range.block.fd))
        }
        guard regions.count <= VhostUser.maxRegions else {
            throw VMMError("guest memory has \(regions.count) ranges, vhost-user takes \(VhostUser.maxRegions)")
        }
        self.regions = regions
    }

    /// The payload of SET_MEM_TABLE.
    var table: [UInt8] {
        var bytes = littleEndianBytes(UInt32(regions.count)) + littleEndianBytes(0 as UInt32)
        for region in regions {
            bytes += littleEndianBytes(region.start) + littleEndianBytes(region.size)
            bytes += littleEndianBytes(region.start) + littleEndianBytes(region.offset)
        }
        return bytes
    }

    func contains(_ address: UInt64, length: UInt64) -> Bool {
        regions.contains { region in
            let offset = address &- region.start
            return offset < region.size && length <= region.size &- offset
        }
    }

    /// Whether a back end can reach all of a queue's rings.
    func contains(_ queue: VirtioQueueSetup) -> Bool {
        let size = UInt64(queue.size)
        return contains(queue.descriptors, length: 16 * size) && contains(queue.available, length: 6 + 2 * size)
            && contains(queue.used, length: 6 + 8 * size)
    }
}
