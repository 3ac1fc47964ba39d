import BatonRuntime

/// Commands that are answered at once, with what the device knows.
extension SCSIDisk {
    /// What a command gives.
    enum Answer {
        case data([UInt8])
        case failure(SCSISense)
    }

    /// - Parameter luns: those of the disk's target.
    func answer(_ command: SCSICommand, luns: [UInt16]) -> Answer {
        switch command.operation {
        case SCSIOperation.testUnitReady, SCSIOperation.preventRemoval: return .data([])
        // A disk that is told to stop goes on; a CD that is to be ejected stays.
        case SCSIOperation.startStop: return .data([])
        case SCSIOperation.verify10, SCSIOperation.verify16:
            guard command[1] & 0x06 == 0 else { return .failure(.invalidField) }
            let (block, count) = command.range
            return place(block, count) == nil ? .failure(.outOfRange) : .data([])
        case SCSIOperation.requestSense:
            guard command[1] & 1 == 0 else { return .failure(.invalidField) }
            return .data(takeSense())
        case SCSIOperation.inquiry: return inquiry(command)
        case SCSIOperation.reportLUNs: return SCSIDisk.report(luns, command)
        case SCSIOperation.modeSense6, SCSIOperation.modeSense10: return modeSense(command)
        case SCSIOperation.readCapacity10:
            guard command[8] & 1 == 0 else { return .failure(.invalidField) }
            let last = UInt32(clamping: max(blockCount, 1) - 1)
            return .data(SCSIDisk.bytes(last) + SCSIDisk.bytes(UInt32(blockSize)))
        case SCSIOperation.serviceActionIn:
            guard command[1] & 0x1f == 0x10 else { return .failure(.invalidField) }
            return .data(readCapacity16())
        case SCSIOperation.readTOC where properties.isCD: return readTOC(command)
        case SCSIOperation.getConfiguration where properties.isCD: return .data(configuration())
        case SCSIOperation.getEventStatus where properties.isCD: return eventStatus(command)
        case SCSIOperation.readDiscInformation where properties.isCD: return discInformation(command)
        default: return .failure(.invalidOpcode)
        }
    }

    static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] { littleEndianBytes(value.byteSwapped) }

    private func takeSense() -> [UInt8] {
        let sense = owesAttention ? SCSISense.capacityChanged : .none
        owesAttention = false
        var bytes = [UInt8](repeating: 0, count: SCSISense.size)
        bytes.withUnsafeMutableBytes { sense.write(to: $0) }
        return bytes
    }

    // MARK: Identity

    static func report(_ luns: [UInt16], _ command: SCSICommand) -> Answer {
        guard command[2] <= 2 else { return .failure(.invalidField) }
        var list: [UInt8] = []
        // The well known logical units are none.
        if command[2] != 1 {
            for lun in luns { list += address(lun) + [0, 0, 0, 0, 0, 0] }
        }
        return .data(bytes(UInt32(list.count)) + [0, 0, 0, 0] + list)
    }

    /// A LUN in the first two of its eight bytes: up to 255 by itself, above in the flat format (SAM-5, 4.7).
    static func address(_ lun: UInt16) -> [UInt8] { [UInt8(lun >> 8) | (lun > 255 ? 0x40 : 0), UInt8(lun & 0xff)] }

    private static func text(_ text: String, _ count: Int) -> [UInt8] {
        let bytes = Array(text.utf8.prefix(count))
        return bytes + [UInt8](repeating: 0x20, count: count - bytes.count)
    }

    private var type: UInt8 { properties.isCD ? 5 : 0 }

    /// What INQUIRY of a LUN gives that is not there, of a target that is.
    static let absentInquiry: [UInt8] = [0x7f, 0, 5, 2, 31] + [UInt8](repeating: 0, count: 31)

    private func inquiry(_ command: SCSICommand) -> Answer {
        if command[1] & 1 != 0 { return vitalProductData(command[2]) }
        guard command[2] == 0 else { return .failure(.invalidField) }
        // SPC-3; with queues of commands (CMDQUE).
        var data: [UInt8] = [type, properties.isCD ? 0x80 : 0, 5, 0x12, 31, 0, 0x10, 0x02]
        data += SCSIDisk.text(properties.vendor, 8)
        data += SCSIDisk.text(properties.product ?? (properties.isCD ? "BATON CD-ROM" : "BATON HARDDISK"), 16)
        data += SCSIDisk.text(properties.version, 4)
        return .data(data)
    }

    private func vitalProductData(_ page: UInt8) -> Answer {
        var body: [UInt8]
        switch page {
        case 0x00:
            body = [0x00]
            if !properties.serial.isEmpty { body.append(0x80) }
            body += properties.isCD ? [0x83] : [0x83, 0xb0, 0xb1, 0xb2]
        case 0x80 where !properties.serial.isEmpty: body = Array(properties.serial.utf8.prefix(36))
        case 0x83:
            body = []
            // Of the vendor's own making, in ASCII.
            let name = properties.deviceID ?? (properties.serial.isEmpty ? backend.id : properties.serial)
            let bytes = Array(name.utf8.prefix(255 - 8))
            body += [0x02, 0x00, 0x00, UInt8(bytes.count)] + bytes
            if properties.wwn != 0 {
                body += [0x01, 0x03, 0x00, 8]
                body += SCSIDisk.bytes(properties.wwn)
            }
        case 0xb0 where !properties.isCD: body = blockLimits
        case 0xb1 where !properties.isCD:
            body = [UInt8](repeating: 0, count: 60)
            body.replaceSubrange(0..<2, with: SCSIDisk.bytes(properties.rotationRate))
        case 0xb2 where !properties.isCD:
            // UNMAP, and WRITE SAME with its bit; thin.
            body = discards ? [0, 0xe0, 2, 0] : [0, 0, 0, 0]
        default: return .failure(.invalidField)
        }
        var data = [type, page]
        data += SCSIDisk.bytes(UInt16(body.count))
        return .data(data + body)
    }

    /// Blocks that one UNMAP or WRITE SAME has at most: as much as one request of the block layer.
    var maxRange: UInt64 { UInt64(VirtioStorage.maxRequest) / blockSize }

    private var blockLimits: [UInt8] {
        var body = [UInt8](repeating: 0, count: 60)
        body[0] = 1  // WSNZ: WRITE SAME of no blocks is refused
        body.replaceSubrange(4..<8, with: SCSIDisk.bytes(UInt32(clamping: maxRange)))
        if discards {
            body.replaceSubrange(16..<20, with: SCSIDisk.bytes(UInt32(clamping: maxRange)))
            body.replaceSubrange(20..<24, with: SCSIDisk.bytes(UInt32(1)))
        }
        if !isReadOnly { body.replaceSubrange(32..<40, with: SCSIDisk.bytes(maxRange)) }
        return body
    }

    private func readCapacity16() -> [UInt8] {
        var answer = SCSIDisk.bytes(max(blockCount, 1) - 1) + SCSIDisk.bytes(UInt32(blockSize))
        answer += [UInt8](repeating: 0, count: 20)
        if discards { answer[14] = 0x80 }  // LBPME
        return answer
    }

    // MARK: Modes

    private func modeSense(_ command: SCSICommand) -> Answer {
        let isShort = command.operation == SCSIOperation.modeSense6
        let (control, page, subpage) = (command[2] >> 6, command[2] & 0x3f, command[3])
        guard control != 3 else { return .failure(.savingUnsupported) }
        guard subpage == 0 || subpage == 0xff else { return .failure(.invalidField) }
        var pages: [UInt8] = []
        if page == 0x08 || page == 0x3f {
            var caching = [UInt8](repeating: 0, count: 20)
            (caching[0], caching[1]) = (0x08, 18)
            // Of what can be changed, nothing.
            if control != 1, backend.isWriteback, !isReadOnly { caching[2] = 4 }
            pages += caching
        }
        if properties.isCD, page == 0x2a || page == 0x3f {
            var abilities = [UInt8](repeating: 0, count: 22)
            (abilities[0], abilities[1]) = (0x2a, 20)
            // Reads CD-R and CD-RW, locks.
            if control != 1 { (abilities[2], abilities[6]) = (3, 0x21) }
            pages += abilities
        }
        guard !pages.isEmpty else { return .failure(.invalidField) }
        // Without DBD a descriptor of the blocks.
        var descriptor: [UInt8] = []
        if command[1] & 8 == 0, !properties.isCD {
            let blocks = UInt32(clamping: blockCount) > 0xff_ffff ? 0 : UInt32(blockCount)
            descriptor = SCSIDisk.bytes(blocks) + SCSIDisk.bytes(UInt32(blockSize))
        }
        let flags: UInt8 = isReadOnly && !properties.isCD ? 0x80 : 0
        let rest = descriptor + pages
        if isShort {
            let head = [UInt8(truncatingIfNeeded: rest.count + 3), 0, flags, UInt8(descriptor.count)]
            return .data(head + rest)
        }
        var head = SCSIDisk.bytes(UInt16(rest.count + 6))
        head += [0, flags, 0, 0]
        head += SCSIDisk.bytes(UInt16(descriptor.count))
        return .data(head + rest)
    }

    // MARK: CD

    /// One track, of data (MMC-6, 6.25).
    private func readTOC(_ command: SCSICommand) -> Answer {
        let isTime = command[1] & 2 != 0
        func address(_ block: UInt64) -> [UInt8] {
            guard isTime else { return SCSIDisk.bytes(UInt32(clamping: block)) }
            let frames = block + 150
            return [
                0, UInt8(clamping: frames / 75 / 60), UInt8(frames / 75 % 60), UInt8(frames % 75),
            ]
        }
        switch command[2] & 0xf {
        case 0:
            guard command[6] <= 1 || command[6] == 0xaa else { return .failure(.invalidField) }
            var tracks: [UInt8] = []
            if command[6] <= 1 { tracks += [0, 0x14, 1, 0] + address(0) }
            tracks += [0, 0x16, 0xaa, 0] + address(blockCount)
            return .data(SCSIDisk.bytes(UInt16(tracks.count + 2)) + [1, 1] + tracks)
        case 1: return .data([0, 10, 1, 1, 0, 0x14, 1, 0] + address(0))
        default: return .failure(.invalidField)
        }
    }

    /// A CD-ROM drive with a disc in it, and no more features than every drive has.
    private func configuration() -> [UInt8] {
        let body: [UInt8] = [
            0, 0, 0x03, 4, 0, 0x08, 1, 0,  // profiles: CD-ROM, which is current
            0, 1, 0x0b, 8, 0, 0, 0, 1, 1, 0, 0, 0,  // core: SCSI
            0, 3, 0x03, 4, 0x21, 0, 0, 0,  // removable: tray, can be locked
        ]
        return SCSIDisk.bytes(UInt32(body.count + 4)) + [0, 0, 0, 0x08] + body
    }

    /// Nothing has happened to the disc.
    private func eventStatus(_ command: SCSICommand) -> Answer {
        guard command[1] & 1 != 0 else { return .failure(.invalidField) }
        guard command[4] & 0x10 != 0 else { return .data([0, 2, 0x80, 0x10]) }
        return .data([0, 6, 4, 0x10, 0, 2, 0, 0])
    }

    /// One session, complete.
    private func discInformation(_ command: SCSICommand) -> Answer {
        guard command[1] & 7 == 0 else { return .failure(.invalidOpcode) }
        var body = [UInt8](repeating: 0, count: 34)
        body[1] = 32
        (body[2], body[3], body[4], body[5], body[6], body[7]) = (0x0e, 1, 1, 1, 1, 0x20)
        return .data(body)
    }
}
