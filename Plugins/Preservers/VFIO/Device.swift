import BatonRuntime
import Glibc

/// `vfio-pci`: a function of the host's, given to the guest.
///
/// The VMM serves BAR registers, MSI, MSI-X and the interrupt line; the rest
/// of the configuration space and all of the BARs are the device's own.
final class VFIOPCIDevice: PCIFunction {
    /// The host's name of the device.
    let hostName: String
    let file: VFIODeviceFile
    let shape: VFIOShape
    let memory = VFIODeviceMemory()
    private let layout: VFIOLayout
    private unowned let preserver: VFIOPreserver
    private(set) var interrupts: VFIOInterrupts!
    /// Whether the device may be touched: not before the commit in a process
    /// that takes it over.
    private var isOurs: Bool

    /// - Parameter heritage: what the process before handed over; nil in a
    ///   fresh start.
    init(
        vm: VirtualMachine, id: String?, name: String, file: VFIODeviceFile, shape: VFIOShape, heritage: VFIOHeritage?,
        preserver: VFIOPreserver
    ) throws(VMMError) {
        hostName = name
        self.file = file
        self.shape = shape
        self.preserver = preserver
        isOurs = heritage == nil
        layout = try VFIOLayout(shape)
        super.init(vm: vm, model: "vfio-pci", id: id, identity: layout.identity)
        interrupts =
            heritage.map { VFIOInterrupts(self, inherited: $0.kind, events: $0.events) } ?? VFIOInterrupts(self)
        addBars(mapping: vm.cpr?.isTrial != true)
        addCapabilities()
        msi?.onChange = { [unowned self] in interruptsChanged() }
        msix?.onControlChange = { [unowned self] in interruptsChanged() }
        vm.addressSpace.expectForeignWriters()
    }

    private func addBars(mapping: Bool) {
        for found in layout.bars {
            let bar = PCIBar(
                index: found.index, space: found.space, size: found.size, isPrefetchable: found.isPrefetchable)
            let region = shape.regions[found.index]
            bar.add(registers: VFIORegionAccess(self, file: file.fd, region: region), size: found.size)
            add(bar)
            guard mapping, found.space != .io else { continue }
            for area in directAreas(of: region, bar: found.index)
            where !memory.map(file.fd, region, bar: bar, offset: area.start, size: area.size) {
                let what = "vfio \(hostName): Failed to mmap BAR \(found.index), performance may be slow"
                Report.warning(VMMError.system(what).message)
            }
        }
    }

    /// The parts that can be mapped and have nothing of MSI-X.
    private func directAreas(of region: VFIORegion, bar: Int) -> [(start: UInt64, size: UInt64)] {
        var areas = region.areas
        guard let msix = layout.msix else { return areas }
        let hidden = [
            (msix.table, UInt64(msix.vectors * 16)), (msix.pending, UInt64((msix.vectors + 63) / 64 * 8)),
        ]
        for (place, size) in hidden where place.bar == bar {
            let from = place.offset & ~4095
            let to = (place.offset + size + 4095) & ~4095
            areas = areas.flatMap { area in
                let end = area.start + area.size
                return [(area.start, min(end, from)), (max(area.start, to), end)]
                    .filter { $0.0 < $0.1 }.map { (start: $0.0, size: $0.1 - $0.0) }
            }
        }
        return areas
    }

    private func addCapabilities() {
        for capability in layout.capabilities {
            switch capability.id {
            case PCICapabilityID.msi:
                if let msi = layout.msi { addMSI(vectors: msi.vectors, at: msi.offset) }
            case PCICapabilityID.msix:
                guard let msix = layout.msix, let table = bar(msix.table.bar), let pending = bar(msix.pending.bar)
                else { break }
                addMSIX(
                    vectors: msix.vectors, table: (table, msix.table.offset), pending: (pending, msix.pending.offset),
                    at: capability.offset)
            default:
                // Its bytes are the device's.
                config.addCapability(capability.id, size: 2, at: capability.offset)
            }
        }
    }

    // MARK: Configuration space

    private func isPassed(_ offset: Int) -> Bool { layout.passed.indices.contains(offset) && layout.passed[offset] }

    override func readConfig(_ offset: Int, width: Int) -> UInt32 {
        let own = super.readConfig(offset, width: width)
        guard (offset..<offset + width).contains(where: isPassed) else { return own }
        var raw: UInt32 = 0
        let at = off_t(truncatingIfNeeded: shape.configRegion.offset) + off_t(offset)
        let count = retryingInterrupts { pread(file.fd, &raw, width, at) }
        let device = count == width ? UInt32(littleEndian: raw) : UInt32.max
        var value: UInt32 = 0
        for index in 0..<width {
            value |= (isPassed(offset + index) ? device : own) & 0xff << UInt32(8 * index)
        }
        return value
    }

    override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        super.writeConfig(offset, width: width, value: value)
        // The device has the command register too: it decodes addresses, and
        // masters the bus, when the guest says so.
        func isDevices(_ offset: Int) -> Bool { isPassed(offset) || (offset & ~1) == PCIRegister.command }
        if (offset..<offset + width).allSatisfy(isDevices) {
            writeDeviceConfig(offset, width: width, value)
        } else {
            for index in 0..<width where isDevices(offset + index) {
                writeDeviceConfig(offset + index, width: 1, value >> UInt32(8 * index))
            }
        }
    }

    private func writeDeviceConfig(_ offset: Int, width: Int, _ value: UInt32) {
        var raw = value.littleEndian
        let at = off_t(truncatingIfNeeded: shape.configRegion.offset) + off_t(offset)
        if retryingInterrupts({ pwrite(file.fd, &raw, width, at) }) != width {
            Log.guestError("\(stateName): write of \(width) bytes at \(Hex(offset)) of the configuration space failed")
        }
    }

    // MARK: BARs

    override func barMoved(_ bar: PCIBar) { preserver.placeMemory(vm.addressSpace) }

    /// Whether the guest's accesses go to the device without the VMM.
    func setDirectAccess(_ on: Bool) {
        guard memory.isDirect != on else { return }
        memory.isDirect = on
        preserver.placeMemory(vm.addressSpace)
    }

    // MARK: Interrupts and life

    private func interruptsChanged() { if isOurs { interrupts.update() } }

    /// The guest is this process' now.
    func settle() {
        isOurs = true
        interrupts.update()
    }

    override func resetFunction() {
        guard isOurs else { return }
        interrupts.disable()
        setDirectAccess(true)
        writeDeviceConfig(PCIRegister.command, width: 2, 0)
        if shape.resets, VFIO.call(file.fd, VFIO.Request.deviceReset) != 0 {
            Report.warning(VMMError.system("vfio \(hostName): failed to reset the device").message)
        }
        interrupts.update()
    }

    override func pause() { interrupts.pause() }
    override func resume() { interrupts.resume() }

    override func saveFunction(to writer: inout StateWriter) {
        writer.put("host", hostName)
        writer.put("intx-pending", interrupts.isPending)
    }

    override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        let host = try reader.string("host")
        guard host == hostName else {
            throw VMMError(
                "section '\(reader.section)' is of the host's device \(host), this is \(hostName)",
                hint: "Give the new VMM the devices of the old one.")
        }
        let isPending = try reader.bool("intx-pending")
        return { [unowned self] in interrupts.restore(isPending: isPending) }
    }
}
