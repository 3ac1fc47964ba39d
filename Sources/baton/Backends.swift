import BatonRuntime
import Chardev
import Virtio

/// The host sides of devices, made before the board: chardevs, disks and
/// network back ends.
struct Backends {
    /// `-serial`; nil for none.
    private(set) var serial: Chardev?
    /// Chardevs that a human monitor shares with a device (`mon:`).
    private(set) var sharedMonitors: [Chardev] = []
    private(set) var flash: [BlockBackend] = []
    /// `-device` options that short forms stand for (`-drive if=virtio`).
    private(set) var impliedDevices: [String] = []
    /// Network cards that `-nic` and `-net nic` stand for.
    private(set) var cards: [NetOptions.Card] = []
    private(set) var net: [NetBackend] = []
    /// What makes disks, with the nodes that there are.
    private(set) var blocks: BlockOptions

    /// - Parameter plugged: what has come and gone since the command line.
    init(
        _ invocation: Invocation, plugged: PluggedParts, vm: VirtualMachine, loader: ModuleLoader
    ) throws(VMMError) {
        blocks = BlockOptions(vm: vm, loader: loader)
        for option in plugged.settle(.chardev, invocation) {
            try invocation.at(option.place) { () throws(VMMError) in
                _ = try ChardevFactory.make(option.value, vm: vm)
            }
        }
        try makeSerial(invocation, vm)
        try makeDisks(invocation, plugged, vm)
        let network = try NetOptions(invocation, netdevs: plugged.settle(.netdev, invocation))
        cards = network.cards
        for backend in network.backends {
            try invocation.at(backend.place) { () throws(VMMError) in
                net.append(
                    try NetBackendFactory.make(backend.options, vm: vm) { name throws(VMMError) in
                        try loader.netBackendType(name)
                    })
            }
        }
    }

    /// Whether other processes serve the guest out of its RAM, which must be shared with them.
    static func needSharedRAM(_ vm: VirtualMachine) -> Bool { !vm.servedDisks.isEmpty }

    private mutating func makeSerial(_ invocation: Invocation, _ vm: VirtualMachine) throws(VMMError) {
        let given = invocation.all("serial")
        guard given.count <= 1 else { throw VMMError("too many serial ports: this machine has one") }
        // Without a word about it the terminal gets the serial port, and the
        // monitor too unless that goes elsewhere.
        let quiet = invocation.has("nodefaults") || invocation.has("daemonize")
        let text = given.first ?? (quiet ? "none" : invocation.has("monitor") ? "stdio" : "mon:stdio")
        let form = try ChardevFactory.makeShortForm(text, id: "serial0", vm: vm)
        serial = form.chardev
        if form.wantsMonitor, let chardev = form.chardev { sharedMonitors.append(chardev) }
    }

    private mutating func makeDisks(
        _ invocation: Invocation, _ plugged: PluggedParts, _ vm: VirtualMachine
    ) throws(VMMError) {
        let given = try BlockNodes(plugged.settle(.blockdev, invocation).map(\.value))
        for text in given.own {
            try blocks.add(try KeyValueOptions(text, impliedKey: "driver", style: .keyval))
        }
        for disk in given.served { try StorageDaemon.serve(disk, vm: vm) }
        var flashUnits: [Int: BlockBackend] = [:]
        let snapshot = invocation.has("snapshot")
        var index = 0
        try invocation.each("drive") { text throws(VMMError) in
            defer { index += 1 }
            let use =
                try ServedDrive.isWanted(text, snapshot: snapshot)
                ? ServedDrive.make(text, index: index, snapshot: snapshot, vm: vm)
                : blocks.drive(text, index: index)
            switch use {
            case .none: break
            case .virtio(let id): impliedDevices.append("virtio-blk-device,drive=\(id)")
            case .flash(let unit, let id):
                guard let backend = vm.blockBackend(id), flashUnits.updateValue(backend, forKey: unit) == nil else {
                    throw VMMError("drive with bus=0, unit=\(unit) (index=\(unit)) exists")
                }
            }
        }
        flash = flashUnits.sorted { $0.key < $1.key }.map(\.value)
        guard flashUnits.isEmpty || flashUnits[0] != nil else {
            throw VMMError("-drive if=pflash,unit=1 needs a drive with unit=0 too")
        }
    }
}
