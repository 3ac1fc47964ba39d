import BatonRuntime

/// What a guest does to a board, as an input says it.
extension FuzzBoard {
    /// Carries the whole input out, up to a limit of accesses.
    func carryOut(_ bytes: [UInt8], limit: Int = 400) {
        var input = Input(bytes)
        var steps = 0
        while !input.isAtEnd, steps < limit {
            steps += 1
            step(&input)
        }
    }

    private func step(_ input: inout Input) {
        let head = input.byte()
        let width = [1, 2, 4, 8][Int(head >> 3 & 3)]
        let isWrite = head & 0x20 != 0
        switch head & 7 {
        case 0, 1:
            let region = regions[Int(input.byte()) % regions.count]
            access(
                region.space, region.start &+ UInt64(input.number(UInt16.self)) % region.size, width, isWrite, &input)
        case 2:
            let region = regions[Int(input.byte()) % regions.count]
            access(
                region.space, region.start &+ UInt64(input.number(UInt32.self)) % region.size, width, isWrite, &input)
        case 3:
            let function = UInt64(input.byte() % 8) << 15
            access(vm.addressSpace, ecam + function + UInt64(input.number(UInt16.self) & 0xfff), width, isWrite, &input)
        case 4:
            // Registers behind BARs, wherever they are.
            let place = pciMemory + UInt64(input.number(UInt32.self) & 0xf_ffff)
            access(vm.addressSpace, place, width, isWrite, &input)
        case 5:
            let offset = Int(input.number(UInt16.self)) * 16
            let bytes = input.take(1 + Int(input.byte() & 63))
            for (index, byte) in bytes.enumerated() where offset + index < ram.usedLength {
                ram.host.storeBytes(of: byte, toByteOffset: offset + index, as: UInt8.self)
            }
        case 6:
            switch input.byte() % 6 {
            case 0: chardevs[Int(input.byte()) % 2].type(input.take(Int(input.byte())))
            case 1: network.deliver(&input)
            case 2: chardevs[Int(input.byte()) % 2].room = Int(input.byte())
            case 3: engine.error = Int32(input.byte())
            case 4:
                for chardev in chardevs {
                    chardev.room = .max
                    chardev.frontend?.chardevWritable()
                }
            default: vm.requestPowerdown()
            }
        default: turn(1)
        }
    }

    private func access(
        _ space: AddressSpace, _ address: UInt64, _ width: Int, _ isWrite: Bool, _ input: inout Input
    ) {
        guard isWrite else {
            if let value = space.mmioRead(address, width: width), width < 8 {
                expect(value >> UInt64(8 * width) == 0, "a read of \(width) bytes gives \(value)")
            }
            return
        }
        // Often a small number, or the address of something in RAM.
        let value: UInt64 =
            switch input.byte() & 3 {
            case 0: UInt64(input.byte())
            case 1: ramBase + UInt64(input.number(UInt16.self)) * 16
            case 2: UInt64(input.number(UInt32.self))
            default: input.number(UInt64.self)
            }
        _ = space.mmioWrite(address, width: width, value: value)
    }
}
