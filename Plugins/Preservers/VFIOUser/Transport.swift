import BatonRuntime
import CBaton
import Glibc
import VFIOPCI

/// The server's device, in messages.
extension VFIOUserConnection: VFIOTransport {
    func ask(_ query: VFIOQuery, _ argument: inout VFIOArgument) -> Int32 {
        // The protocol's structures are the kernel's, but that the device's
        // has no capabilities.
        let (command, size): (VFIOUser.Command, Int) =
            switch query {
            case .deviceInfo: (.deviceGetInfo, 16)
            case .regionInfo: (.deviceGetRegionInfo, argument.bytes.count)
            case .irqInfo: (.deviceGetIRQInfo, 16)
            }
        var question = VFIOArgument(bytes: Array(argument.bytes.prefix(size)))
        question.set(0, UInt32(size))
        let least = query == .regionInfo ? 32 : 16
        let answer = call(command, question.bytes, size: least...max(least, size), fdCount: 0...16)
        guard case .success(let (payload, fds)) = answer else { return code(answer) }
        argument = VFIOArgument(bytes: payload)
        let index = Int(argument.value(8, as: UInt32.self))
        switch query {
        case .deviceInfo: break
        case .regionInfo, .irqInfo:
            guard index == Int(question.value(8, as: UInt32.self)) else { return EPROTO }
        }
        // All areas of a region are of one file, the first.
        guard query == .regionInfo, fds.count > 0 else { return 0 }
        while fds.count > 1 { if let extra = fds.take() { close(extra) } }
        if let old = regionFiles[index] { close(old) }
        regionFiles[index] = nil
        if let fd = fds.take() {
            if cbaton_guard_accepts(fd, argument.value(24), argument.value(16)) != 0 {
                regionFiles[index] = fd
            } else {
                close(fd)
                Report.warning("\(Self.label(name)): region \(index) cannot be mapped, performance may be slow")
            }
        }
        return 0
    }

    private func code(_ answer: Answer) -> Int32 {
        guard case .failure(let error) = answer else { return 0 }
        return error.code
    }

    // MARK: Regions

    private func access(_ region: VFIORegion, _ offset: UInt64, _ count: Int) -> [UInt8] {
        littleEndianBytes(offset) + littleEndianBytes(UInt32(truncatingIfNeeded: region.index))
            + littleEndianBytes(UInt32(truncatingIfNeeded: count))
    }

    func read(_ region: VFIORegion, at offset: UInt64, into bytes: UnsafeMutableRawBufferPointer) -> Int32 {
        let size = VFIOUser.regionAccessSize
        var done = 0
        while done < bytes.count {
            let count = min(bytes.count - done, capabilities.transfer)
            let request = access(region, offset &+ UInt64(done), count)
            let answer = call(.regionRead, request, size: size + count...size + count)
            guard case .success(let (payload, _)) = answer else { return code(answer) }
            guard payload.prefix(size).elementsEqual(request) else { return EPROTO }
            UnsafeMutableRawBufferPointer(rebasing: bytes[done..<done + count]).copyBytes(from: payload[size...])
            done += count
        }
        return 0
    }

    /// The guest's stores to memory are not waited for, as a bus' are not.
    func write(_ region: VFIORegion, at offset: UInt64, from bytes: UnsafeRawBufferPointer) -> Int32 {
        let request = access(region, offset, bytes.count)
        if region.index < VFIO.bars { return post(.regionWrite, request + bytes) }
        let size = VFIOUser.regionAccessSize
        let answer = call(.regionWrite, request + bytes, size: size...size)
        guard case .success(let (payload, _)) = answer else { return code(answer) }
        return payload == request ? 0 : EPROTO
    }

    func file(of region: VFIORegion) -> (fd: Int32, offset: UInt64)? {
        regionFiles[region.index].map { ($0, region.offset) }
    }

    var filesMayShrink: Bool { true }

    // MARK: Interrupts and reset

    private func setInterrupts(
        _ index: UInt32, _ flags: UInt32, start: Int = 0, count: Int, _ events: [Int32] = []
    ) -> Int32 {
        var argument = VFIOArgument(size: VFIO.SetIRQs.size, flags: flags)
        argument.set(8, index)
        argument.set(12, UInt32(truncatingIfNeeded: start))
        argument.set(16, UInt32(truncatingIfNeeded: count))
        return settled(call(.deviceSetIRQs, argument.bytes, fds: events, size: 0...VFIO.SetIRQs.size))
    }

    func setEvents(_ index: UInt32, _ events: [Int32]) -> Int32 {
        let flags = VFIO.SetIRQs.eventfds | VFIO.SetIRQs.trigger
        var start = 0
        while start < events.count {
            let some = Array(events[start...].prefix(capabilities.messageFDs))
            let result = setInterrupts(index, flags, start: start, count: some.count, some)
            guard result == 0 else {
                if start > 0 { _ = disableInterrupts(index) }
                return result
            }
            start += some.count
        }
        return 0
    }

    func disableInterrupts(_ index: UInt32) -> Int32 {
        setInterrupts(index, VFIO.SetIRQs.noData | VFIO.SetIRQs.trigger, count: 0)
    }

    func unmaskINTx() -> Int32 { setInterrupts(0, VFIO.SetIRQs.noData | VFIO.SetIRQs.unmask, count: 1) }

    func reset() -> Int32 { settled(call(.deviceReset, [], size: 0...0)) }

    /// A device that is gone has neither interrupts nor state, which has been
    /// said once.
    private func settled(_ answer: Answer) -> Int32 { isConnected ? code(answer) : 0 }
}
