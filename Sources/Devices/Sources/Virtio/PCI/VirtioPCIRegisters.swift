import BatonRuntime

/// The common configuration structure (virtio 1.3, 4.1.4.3).
final class CommonRegisters: MMIODevice {
    private unowned let pci: VirtioPCI

    init(_ pci: VirtioPCI) { self.pci = pci }

    private enum Register {
        static let deviceFeaturesSelect: UInt64 = 0
        static let deviceFeatures: UInt64 = 4
        static let driverFeaturesSelect: UInt64 = 8
        static let driverFeatures: UInt64 = 12
        static let configVector: UInt64 = 16
        static let queueCount: UInt64 = 18
        static let status: UInt64 = 20
        static let configGeneration: UInt64 = 21
        static let queueSelect: UInt64 = 22
        static let queueSize: UInt64 = 24
        static let queueVector: UInt64 = 26
        static let queueEnable: UInt64 = 28
        static let queueNotifyOffset: UInt64 = 30
        static let queueDescriptors: UInt64 = 32
        static let queueDriver: UInt64 = 40
        static let queueDevice: UInt64 = 48
        static let end: UInt64 = 56
    }

    /// The width of the field at an offset; 64-bit fields are written in halves.
    private func width(_ offset: UInt64) -> Int? {
        switch offset {
        case Register.status, Register.configGeneration: 1
        case Register.configVector, Register.queueCount: 2
        case Register.queueSelect..<Register.queueDescriptors where offset % 2 == 0: 2
        case 0..<Register.configVector where offset % 4 == 0: 4
        case Register.queueDescriptors..<Register.end where offset % 4 == 0: 4
        default: nil
        }
    }

    private var queue: VirtQueue? {
        let index = Int(pci.queueSelect)
        return pci.device.queues.indices.contains(index) ? pci.device.queues[index] : nil
    }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        if width == 8 { return mmioReadHalves(offset: offset) }
        guard self.width(offset) == width else {
            Log.guestError("\(pci.stateName): read of \(width) bytes at \(Hex(offset)) of the common configuration")
            return 0
        }
        let device = pci.device
        switch offset {
        case Register.deviceFeaturesSelect: return UInt64(pci.deviceFeaturesSelect)
        case Register.deviceFeatures: return half(device.offeredFeatures, pci.deviceFeaturesSelect)
        case Register.driverFeaturesSelect: return UInt64(pci.driverFeaturesSelect)
        case Register.driverFeatures: return half(device.driverFeatures, pci.driverFeaturesSelect)
        case Register.configVector: return UInt64(pci.configVector)
        case Register.queueCount: return UInt64(device.queues.count)
        case Register.status: return UInt64(device.status)
        case Register.configGeneration: return UInt64(device.configGeneration & 0xff)
        case Register.queueSelect: return UInt64(pci.queueSelect)
        default: break
        }
        // A queue that does not exist has the size 0 (virtio 1.3, 4.1.4.3.1).
        guard let queue else { return offset == Register.queueVector ? UInt64(VirtioPCI.noVector) : 0 }
        switch offset {
        case Register.queueSize: return UInt64(queue.size)
        case Register.queueVector: return UInt64(pci.queueVectors[queue.index])
        case Register.queueEnable: return queue.ready ? 1 : 0
        case Register.queueNotifyOffset: return UInt64(queue.index)
        case Register.queueDescriptors: return queue.descriptorAddress & 0xffff_ffff
        case Register.queueDescriptors + 4: return queue.descriptorAddress >> 32
        case Register.queueDriver: return queue.driverAddress & 0xffff_ffff
        case Register.queueDriver + 4: return queue.driverAddress >> 32
        case Register.queueDevice: return queue.deviceAddress & 0xffff_ffff
        case Register.queueDevice + 4: return queue.deviceAddress >> 32
        default: return 0
        }
    }

    private func half(_ features: UInt64, _ select: UInt32) -> UInt64 {
        select == 0 ? features & 0xffff_ffff : select == 1 ? features >> 32 : 0
    }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        if width == 8 { return mmioWriteHalves(offset: offset, value: value) }
        guard self.width(offset) == width else {
            return Log.guestError(
                "\(pci.stateName): write of \(width) bytes at \(Hex(offset)) of the common configuration")
        }
        let device = pci.device
        let word = UInt32(truncatingIfNeeded: value)
        let number = UInt16(truncatingIfNeeded: value)
        switch offset {
        case Register.deviceFeaturesSelect: pci.deviceFeaturesSelect = word
        case Register.driverFeaturesSelect: pci.driverFeaturesSelect = word
        case Register.driverFeatures: device.writeFeatures(word, select: pci.driverFeaturesSelect)
        case Register.configVector: pci.configVector = allowed(number)
        case Register.status:
            device.writeStatus(UInt8(truncatingIfNeeded: value))
            if value & 0xff == 0 { pci.resetRegisters() }
        case Register.queueSelect: pci.queueSelect = number
        case Register.deviceFeatures, Register.queueCount, Register.configGeneration, Register.queueNotifyOffset:
            Log.guestError("\(pci.stateName): write of the read-only register at \(Hex(offset))")
        default: writeQueue(offset, word)
        }
    }

    /// A vector that there is not reads back as none (virtio 1.3, 4.1.5.1.2.1).
    private func allowed(_ vector: UInt16) -> UInt16 { Int(vector) < pci.vectors ? vector : VirtioPCI.noVector }

    private func writeQueue(_ offset: UInt64, _ value: UInt32) {
        guard let queue else {
            return Log.guestError("\(pci.stateName): queue \(pci.queueSelect) does not exist")
        }
        let number = UInt16(truncatingIfNeeded: value)
        switch offset {
        case Register.queueVector:
            pci.queueVectors[queue.index] = allowed(number)
            return pci.messagesChanged()
        case Register.queueEnable:
            // Only a reset takes a queue back (virtio 1.3, 4.1.4.3.2).
            if number == 1 { return pci.device.setReady(queue, true) }
            return Log.guestError("\(pci.stateName): \(number) written to queue_enable")
        default: break
        }
        guard !queue.ready else {
            return Log.guestError("\(pci.stateName): queue \(queue.index) changed while it is in use")
        }
        func low(_ address: UInt64) -> UInt64 { address & ~0xffff_ffff | UInt64(value) }
        func high(_ address: UInt64) -> UInt64 { address & 0xffff_ffff | UInt64(value) << 32 }
        switch offset {
        case Register.queueSize: queue.size = number
        case Register.queueDescriptors: queue.descriptorAddress = low(queue.descriptorAddress)
        case Register.queueDescriptors + 4: queue.descriptorAddress = high(queue.descriptorAddress)
        case Register.queueDriver: queue.driverAddress = low(queue.driverAddress)
        case Register.queueDriver + 4: queue.driverAddress = high(queue.driverAddress)
        case Register.queueDevice: queue.deviceAddress = low(queue.deviceAddress)
        default: queue.deviceAddress = high(queue.deviceAddress)
        }
    }
}

/// The ISR status (virtio 1.3, 4.1.4.5): reading it acknowledges.
final class StatusRegister: MMIODevice {
    private unowned let pci: VirtioPCI

    init(_ pci: VirtioPCI) { self.pci = pci }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        guard offset == 0 else { return 0 }
        let status = pci.interruptStatus
        pci.interruptStatus = 0
        pci.driveInterrupt()
        return UInt64(status)
    }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        Log.guestError("\(pci.stateName): write of the ISR status")
    }
}

/// The device's own configuration space.
final class DeviceRegisters: MMIODevice {
    private unowned let pci: VirtioPCI

    init(_ pci: VirtioPCI) { self.pci = pci }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        pci.device.readConfig(offset: Int(truncatingIfNeeded: offset), width: width)
    }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        pci.device.writeConfig(offset: Int(truncatingIfNeeded: offset), width: width, value: value)
    }
}

/// Notifications: any write within a queue's register (virtio 1.3, 4.1.4.4).
final class NotifyRegisters: MMIODevice {
    private unowned let pci: VirtioPCI

    init(_ pci: VirtioPCI) { self.pci = pci }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        pci.device.notify(UInt32(truncatingIfNeeded: offset / UInt64(VirtioPCI.Part.notifyStride)))
    }
}
