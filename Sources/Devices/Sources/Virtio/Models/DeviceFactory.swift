import BatonRuntime

/// Makes the devices of `-device` and gives each its slot: the highest that is
/// free, as QEMU does on this board, so that the same command line gives the
/// same machine.
public final class DeviceFactory: DeviceContext {
    private var serials: [VirtioSerial] = []
    /// Whether virtio-serial devices without `max_ports=` have more ports than one.
    private var wantsMultiport = false
    private var backends: [(backend: NetBackend, isUsed: Bool)] = []
    /// Where each back end is, by its id.
    private var backendPlaces: [String: Int] = [:]
    private var networkCards: UInt8 = 0
    private var bootIndexes: Set<UInt64> = []
    /// Finds the device types of modules; set by the command line.
    public var findType: (String) throws(VMMError) -> (any DeviceType)? = { _ in nil }

    /// Adds a board's virtio-mmio slots.
    /// - Parameter slots: in order of their addresses.
    public func add(_ slots: [VirtioMMIO]) {
        for slot in slots.reversed() { add(slot) }
    }

    /// Makes a back end of `-netdev` known.
    public func add(_ backend: NetBackend) throws(VMMError) {
        guard backendPlaces[backend.id] == nil else { throw VMMError("Duplicate ID '\(backend.id)' for netdev") }
        backendPlaces[backend.id] = backends.count
        backends.append((backend, false))
    }

    /// Takes a back end away that no card uses.
    /// - Throws: QEMU's error when there is none, or it is in use.
    public func remove(netBackend id: String) throws(VMMError) {
        guard let index = backendPlaces[id] else {
            throw VMMError("Device '\(id)' not found", class: .deviceNotFound)
        }
        guard !backends[index].isUsed else { throw VMMError("netdev '\(id)' is in use") }
        backends[index].backend.shutDown()
        backends.remove(at: index)
        backendPlaces = Dictionary(uniqueKeysWithValues: backends.enumerated().map { ($1.backend.id, $0) })
    }

    /// The back ends of `-netdev`, in order.
    public var netBackends: [NetBackend] { backends.map(\.backend) }

    /// Back ends that no device uses, for QEMU's warning.
    public var unusedNetBackends: [String] { backends.filter { !$0.isUsed }.map(\.backend.id) }

    /// Makes a device: one `-device` option, parsed with the implied key
    /// `driver`.
    /// - Throws: QEMU's errors for models, buses and properties.
    public func add(_ options: KeyValueOptions) throws(VMMError) {
        guard let name = try options.string("driver") else { throw VMMError("Parameter 'driver' is missing") }
        var type: (any DeviceType)? = DeviceModel.all.first { $0.name == name }
        if type == nil { type = try findType(name) }
        guard let type else {
            throw VMMError("'\(name)' is not a valid device model name", hint: "Use -device help to list the models.")
        }
        try make(type, options)
    }

    // MARK: Places

    /// Where a virtio device is to be plugged.
    private enum Place {
        case mmio(VirtioMMIO)
        case pci(PCIBus, PCIBus.Placement, vectors: Int?)
    }

    /// Finds the place that `-device` asks for. Changes nothing.
    /// - Parameter vectors: MSI-X vectors where `vectors=` does not say; nil for one a queue and one more.
    private func place(
        _ options: DeviceOptions, _ busType: String, vectors usual: Int? = nil
    ) throws(VMMError) -> Place {
        guard busType == PCIBus.busType else { return .mmio(try bus(VirtioMMIO.self, for: options)) }
        let bus = try bus(PCIBus.self, for: options)
        if try options.options.onOffAuto("disable-legacy") == false {
            throw VMMError("Property '\(options.model).disable-legacy' can't be off: only virtio 1 is there")
        }
        if try options.options.bool("disable-modern") == true {
            throw VMMError("device cannot work as neither modern nor legacy mode is enabled")
        }
        let vectors = try options.options.number("vectors", in: 0...2048)
        return .pci(bus, try bus.place(options), vectors: vectors.map { Int($0) } ?? usual)
    }

    private func plug(_ device: VirtioDevice, _ place: Place, _ options: DeviceOptions) throws(VMMError) {
        switch place {
        case .mmio(let slot): try slot.plug(device)
        case .pci(let bus, let placement, let vectors):
            let function = VirtioPCI(device, model: options.model, id: options.id, vectors: vectors)
            try bus.plug(function, at: placement)
            device.stateName = "\(bus.busName)/\(placement.slot.description)/\(device.model)"
        }
        try vm.add(device)
    }

    // MARK: Models

    func addBlock(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        guard let drive = try options.text("drive") else { throw VMMError("drive property not set") }
        try takeBootIndex(options)
        if let served = vm.servedDisk(drive) {
            if isHotPlugging {
                throw VMMError(
                    "drive '\(drive)' is served by another process, and cannot be plugged",
                    hint: "Give its device on the command line, or use a raw image.")
            }
            return try addServed(served, options, busType)
        }
        guard let backend = vm.blockBackend(drive) else { throw options.notFound("drive", drive) }
        let sharesWrites = try options.options.bool("share-rw") ?? false
        let properties = try blockProperties(options)
        let place = try place(options, busType)
        try backend.lock(for: .disk(sharesWrites: sharesWrites))
        let device = VirtioBlock(vm: vm, backend: backend, properties: properties)
        try plug(device, place, options)
        backend.user = options.id ?? device.stateName
        whenUnplugged { [weak device] in device?.detach() }
    }

    private func blockProperties(_ options: DeviceOptions) throws(VMMError) -> VirtioBlock.Properties {
        var properties = try diskProperties(options)
        properties.queueCount = Int(try options.options.number("num-queues", in: 1...64) ?? 1)
        let size = try options.options.number("queue-size") ?? UInt64(properties.queueSize)
        guard 4...1024 ~= size, size & (size - 1) == 0 else {
            throw VMMError("invalid queue-size property, must be a power of 2 (4 to 1024)")
        }
        properties.queueSize = UInt16(size)
        properties.configuresWriteCache = try options.options.bool("config-wce") ?? true
        // The loop serves the queues; engines carry the requests out.
        if let id = try options.text("iothread"), !vm.hasIOThread(id) { throw options.notFound("iothread", id) }
        return properties
    }

    /// What disks of every kind have.
    private func diskProperties(_ options: DeviceOptions) throws(VMMError) -> VirtioBlock.Properties {
        var properties = VirtioBlock.Properties()
        properties.serial = try options.text("serial") ?? ""
        properties.writeCache = try options.options.onOffAuto("write-cache")
        func policy(_ key: String, _ values: [String]) throws(VMMError) -> BlockErrorPolicy? {
            guard let text = try options.options.enumeration(key, values + ["auto"]) else { return nil }
            return BlockErrorPolicy(rawValue: text)
        }
        properties.onWriteError = try policy("werror", ["report", "ignore", "enospc", "stop"])
        properties.onReadError = try policy("rerror", ["report", "ignore", "enospc", "stop"])
        return properties
    }

    func addSCSI(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        var properties = VirtioSCSI.Properties()
        properties.queueCount = Int(try options.options.number("num_queues", in: 1...64) ?? 1)
        let size = try options.options.number("virtqueue_size") ?? UInt64(properties.queueSize)
        guard 4...1024 ~= size, size & (size - 1) == 0 else {
            throw VMMError("invalid virtqueue_size property, must be a power of 2 (4 to 1024)")
        }
        properties.queueSize = UInt16(size)
        let limit = UInt64(UInt32.max)
        if let count = try options.options.number("cmd_per_lun", in: 1...limit) {
            properties.commandsPerLUN = UInt32(count)
        }
        if let count = try options.options.number("max_sectors", in: 1...limit) {
            properties.maxSectors = UInt32(count)
        }
        if let id = try options.text("iothread"), !vm.hasIOThread(id) { throw options.notFound("iothread", id) }
        let place = try place(options, busType)
        let device = VirtioSCSI(vm: vm, properties: properties, busName: busName("scsi", options))
        try plug(device, place, options)
        addBus(device)
    }

    /// The name of a device's bus: after its id, or else the next of the kind, as in QEMU.
    private func busName(_ kind: String, _ options: DeviceOptions) -> String {
        if let id = options.id { return "\(id).0" }
        var number = 0
        while buses.contains(where: { $0.busName == "\(kind)\(number).0" }) { number += 1 }
        return "\(kind)\(number).0"
    }

    /// Makes the bus of the device that is being made known, until that is taken away.
    private func addBus(_ device: some VirtioDevice & DeviceBus) {
        add(device)
        whenUnplugged { [unowned self, weak device] in if let device { remove(device) } }
    }

    func addSCSIDisk(_ options: DeviceOptions, isCD: Bool) throws(VMMError) {
        guard let drive = try options.text("drive") else { throw VMMError("drive property not set") }
        if let served = vm.servedDisk(drive) {
            throw VMMError(
                "drive '\(drive)' is of the format '\(served.format)', which \(options.model) cannot have",
                hint: "Use virtio-blk-pci, or convert the image with 'qemu-img convert -O raw'.")
        }
        guard let backend = vm.blockBackend(drive) else { throw options.notFound("drive", drive) }
        let bus = try scsiBus(options)
        try takeBootIndex(options)
        var properties = SCSIDisk.Properties()
        properties.isCD = isCD
        let block = try diskProperties(options)
        (properties.serial, properties.writeCache) = (block.serial, block.writeCache)
        (properties.onWriteError, properties.onReadError) = (block.onWriteError, block.onReadError)
        properties.vendor = try options.text("vendor") ?? properties.vendor
        properties.product = try options.text("product")
        properties.version = try options.text("ver") ?? properties.version
        properties.deviceID = try options.text("device_id")
        properties.wwn = try options.options.number("wwn") ?? 0
        properties.rotationRate = UInt16(try options.options.number("rotation_rate", in: 0...0xffff) ?? 0)
        let address = try scsiAddress(options)
        let (target, lun) = try bus.place(address)
        try backend.lock(for: .disk(sharesWrites: try options.options.bool("share-rw") ?? false))
        let disk = SCSIDisk(target: target, lun: lun, backend: backend, properties: properties)
        bus.plug(disk)
        backend.user = options.id ?? "\(bus.stateName)/\(target):\(lun)"
        if options.bus == nil { settle("bus", bus.busName) }
        if address.target == nil { settle("scsi-id", "\(target)") }
        if address.lun == nil { settle("lun", "\(lun)") }
        whenUnplugged { [unowned bus, unowned disk] in bus.unplug(disk) }
    }

    private func scsiBus(_ options: DeviceOptions) throws(VMMError) -> VirtioSCSI {
        do throws(VMMError) {
            return try bus(VirtioSCSI.self, for: options)
        } catch {
            throw VMMError(error.message, hint: "Put a -device virtio-scsi-pci (or virtio-scsi-device) before it.")
        }
    }

    private func scsiAddress(_ options: DeviceOptions) throws(VMMError) -> VirtioSCSI.Address {
        VirtioSCSI.Address(
            channel: try options.options.number("channel"), target: try options.options.number("scsi-id"),
            lun: try options.options.number("lun"))
    }

    /// `bootindex=`: firmware that could read it finds its disk by itself.
    private func takeBootIndex(_ options: DeviceOptions) throws(VMMError) {
        guard let index = try options.options.number("bootindex", in: 0...UInt64(Int32.max)) else { return }
        guard bootIndexes.insert(index).inserted else {
            throw VMMError("The bootindex \(index) has already been used")
        }
        whenUnplugged { [unowned self] in bootIndexes.remove(index) }
    }

    /// A disk that another process serves is a device of a module: vhost-user-blk, which the guest cannot tell from
    /// virtio-blk.
    private func addServed(_ disk: ServedDisk, _ options: DeviceOptions, _ busType: String) throws(VMMError) {
        let name = "vhost-user-blk-\(busType == PCIBus.busType ? "pci" : "device")"
        guard let type = try findType(name) else {
            throw VMMError(
                "drive '\(disk.id)' is of the format '\(disk.format)', whose device is missing: \(name)",
                hint: "It is in the module preserver-vhost-user, which belongs beside the executable.")
        }
        let properties = try KeyValueOptions("")
        properties.set("chardev", disk.chardev)
        // How writes are cached is settled with the process that serves it.
        properties.set("config-wce", "off")
        for key in options.options.untakenKeys {
            guard type.accepts(key) else {
                throw VMMError(
                    "Property '\(options.model).\(key)' is not available for drive '\(disk.id)', whose format is "
                        + "'\(disk.format)'",
                    hint: "Leave it out, or convert the image with 'qemu-img convert -O raw'.")
            }
            options.options.move(key, to: properties)
        }
        try type.make(
            DeviceOptions(model: type.name, id: options.id, bus: options.bus, options: properties), context: self)
    }

    public override func plug(
        _ offload: any VirtioOffload, busType: String, options: DeviceOptions
    ) throws(VMMError) {
        let place = try place(options, busType)
        let device: VirtioOffloadDevice =
            if let sockets = offload as? any VsockOffload {
                VirtioOffloadVsock(vm: vm, offload: sockets)
            } else {
                VirtioOffloadDevice(vm: vm, offload: offload)
            }
        try plug(device, place, options)
    }

    func addEntropy(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        let source = try options.text("rng")
        if let source, !EntropySource.exists(source, vm) { throw options.notFound("rng", source) }
        let place = try place(options, busType)
        try plug(VirtioEntropy(vm: vm), place, options)
        guard let source else { return }
        EntropySource.use(source, true, vm)
        whenUnplugged { [unowned vm] in EntropySource.use(source, false, vm) }
    }

    func addBalloon(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        guard !vm.devices.contains(where: { $0 is VirtioBalloon }) else {
            throw VMMError("Only one balloon device is supported")
        }
        var properties = VirtioBalloon.Properties()
        properties.deflatesOnOOM = try options.options.bool("deflate-on-oom") ?? false
        properties.reportsFreePages = try options.options.bool("free-page-reporting") ?? false
        properties.pagePoison = try options.options.bool("page-poison") ?? true
        properties.pollingInterval = Int64(
            try options.options.number("guest-stats-polling-interval", in: 0...UInt64(UInt32.max)) ?? 0)
        if try options.options.bool("free-page-hint") == true {
            throw VMMError(
                "Property '\(options.model).free-page-hint' can't be on: no migration would use it",
                hint: "free-page-reporting=on gives the memory that the guest does not use back to the host.")
        }
        let place = try place(options, busType)
        try plug(VirtioBalloon(vm: vm, properties: properties), place, options)
    }

    /// Looks at all of the command line's devices before the first is made. A virtio-serial device with nothing but its
    /// first console is what it was before it could have more ports, so that its guest can be taken over.
    public func lookAhead(_ all: [KeyValueOptions]) throws(VMMError) {
        var (devices, consoles) = (0, 0)
        for options in all {
            switch try options.string("driver") {
            case "virtio-serial-pci", "virtio-serial-device": devices += 1
            case "virtconsole":
                consoles += 1
                // A number that makes no sense is refused when the port is made.
                if let number = try? options.number("nr"), number > 0 { wantsMultiport = true }
            case "virtserialport": wantsMultiport = true
            default: break
            }
        }
        if consoles > devices { wantsMultiport = true }
    }

    func addSerial(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        let asked = try options.options.number("max_ports")
        if asked == 0 { throw VMMError("Maximum number of serial ports not specified") }
        if let asked, asked > UInt64(VirtioSerial.portLimit) {
            throw VMMError("maximum ports supported: \(VirtioSerial.portLimit)")
        }
        let ports = asked.map { Int($0) } ?? (wantsMultiport || isHotPlugging ? VirtioSerial.defaultPorts : 1)
        // As in QEMU, whose guests then share one among all queues.
        let place = try place(options, busType, vectors: ports > 1 ? ports + 1 : nil)
        let device = VirtioSerial(vm: vm, maxPorts: ports, busName: busName("virtio-serial", options))
        try plug(device, place, options)
        serials.append(device)
        if asked == nil { settle("max_ports", "\(ports)") }
        addBus(device)
        whenUnplugged { [unowned self, weak device] in serials.removeAll { $0 === device } }
    }

    func addSerialPort(_ options: DeviceOptions, isConsole: Bool) throws(VMMError) {
        var wanted = VirtioSerialPort.Options(isConsole: isConsole)
        if let name = try options.text("chardev") {
            wanted.chardev = vm.chardev(name)
            if wanted.chardev == nil { throw options.notFound("chardev", name) }
            if isHotPlugging, wanted.chardev?.isShared == true {
                throw VMMError(
                    "chardev '\(name)' is a multiplexer, which a port that is plugged cannot leave again",
                    hint: "Give it a chardev of its own.")
            }
        }
        wanted.id = options.id
        wanted.name = try options.text("name")
        wanted.number = try portNumber(options)
        let serial = try serialBus(options, for: wanted)
        let port = try serial.plug(wanted)
        if options.bus == nil { settle("bus", serial.busName) }
        if wanted.number == nil { settle("nr", "\(port.number)") }
        whenUnplugged { [unowned serial, unowned port] in serial.unplug(port) }
    }

    private func portNumber(_ options: DeviceOptions) throws(VMMError) -> Int? {
        try options.options.number("nr", in: 0...UInt64(UInt32.max)).map { Int($0) }
    }

    private func serialBus(_ options: DeviceOptions, for port: VirtioSerialPort.Options) throws(VMMError)
        -> VirtioSerial
    {
        let name = options.bus ?? (serials.first { $0.hasRoom(for: port) } ?? serials.first)?.busName
        guard let name else {
            throw VMMError(
                "No 'virtio-serial-bus' bus found for device '\(options.model)'",
                hint: "Put a -device virtio-serial-pci (or virtio-serial-device) before it.")
        }
        return try bus(
            VirtioSerial.self,
            for: DeviceOptions(model: options.model, id: options.id, bus: name, options: options.options))
    }

    func addNet(_ options: DeviceOptions, _ busType: String) throws(VMMError) {
        guard let name = try options.text("netdev") else { throw VMMError("netdev property not set") }
        try takeBootIndex(options)
        guard let index = backendPlaces[name] else { throw options.notFound("netdev", name) }
        guard !backends[index].isUsed else { throw options.inUse("netdev", name) }
        // QEMU's default addresses, counted up.
        var mac: [UInt8] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56 &+ networkCards]
        var hasAddress = false
        if let text = try options.text("mac") {
            hasAddress = true
            guard let parsed = DeviceFactory.mac(text) else { throw options.badValue("mac", text) }
            mac = parsed
        }
        let features = try VirtioNetFeature.requested(options)
        let place = try place(options, busType)
        let backend = backends[index].backend
        if isHotPlugging, backend.servesItself {
            throw VMMError(
                "netdev '\(name)' is served by another process, and its card cannot be plugged",
                hint: "Give its device on the command line.")
        }
        let device: VirtioDevice =
            if let offload = try backend.offload(mac: mac, features: features) {
                VirtioOffloadNet(vm: vm, offload: offload)
            } else {
                VirtioNet(vm: vm, backend: backend, mac: mac, features: features)
            }
        try plug(device, place, options)
        backends[index].isUsed = true
        networkCards &+= 1
        // The next VMM counts anew.
        if !hasAddress {
            settle("mac", mac.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":"))
        }
        whenUnplugged { [unowned self, weak device] in
            (device as? VirtioNet)?.detach()
            if let index = backendPlaces[name] { backends[index].isUsed = false }
        }
    }

    /// A device of the command line is not made, as it was taken away since: those after it get the addresses, numbers and
    /// places that they would get beside it.
    public func passOver(_ options: KeyValueOptions) throws(VMMError) {
        guard let model = try options.string("driver") else { return }
        let device = DeviceOptions(
            model: model, id: try options.identifier(), bus: try options.string("bus"), options: options)
        switch model {
        case "virtio-net-pci": networkCards &+= 1
        case "virtserialport", "virtconsole":
            var port = VirtioSerialPort.Options(isConsole: model == "virtconsole")
            port.number = try portNumber(device)
            // It may have gone with its bus.
            guard let serial = try? serialBus(device, for: port) else { return }
            try serial.passOver(port)
        case "scsi-hd", "scsi-cd":
            guard let bus = try? scsiBus(device) else { return }
            bus.passOver(try bus.place(try scsiAddress(device)))
        default: break
        }
    }

    /// Six pairs of hexadecimal digits, with `:` or `-` between.
    static func mac(_ text: String) -> [UInt8]? {
        let parts = text.split(omittingEmptySubsequences: false) { $0 == ":" || $0 == "-" }
        let bytes = parts.compactMap { $0.utf8.count == 2 ? UInt8($0, radix: 16) : nil }
        return bytes.count == 6 && parts.count == 6 ? bytes : nil
    }
}
