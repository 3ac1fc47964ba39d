import BatonRuntime
import Firmware
import Glibc

/// The files that the machine starts from, as the command line names them.
public struct BootFiles {
    /// What runs in M-mode: the SBI that is built in, the kernel itself (`none`), or a file.
    public var firmware = MachineFirmware.builtin
    public var kernel: String?
    public var initrd: String?
    /// `-append`.
    public var commandLine: String?
    /// `-dtb`; nil for the board's own device tree.
    public var deviceTree: String?

    public init() {}
}

/// Where everything goes that a start needs: read, checked and placed, but
/// not yet in guest memory.
struct BootPlan {
    private(set) var firmware: GuestImage?
    private(set) var kernel: GuestImage?
    private(set) var initrd: [UInt8] = []
    private(set) var initrdAddress: UInt64 = 0
    private(set) var deviceTree: [UInt8] = []
    private(set) var deviceTreeAddress: UInt64 = 0
    /// Where the boot ROM jumps to, in M-mode.
    private(set) var start: UInt64 = 0
    /// Where the kernel starts; 0 when there is none.
    private(set) var kernelEntry: UInt64 = 0
    /// The kernel for firmware in the flash, which starts it; empty without such.
    private(set) var kernelItems = KernelItems()

    private static let alignment: UInt64 = 2 << 20
    /// Bytes of the largest file that is read, however much memory the guest has: it is read as a whole.
    private static let sizeLimit = (4 << 30) - 1

    /// - Parameters:
    ///   - memorySize: bytes of RAM.
    ///   - boardTree: makes the device tree when `-dtb` does not give one.
    ///   - flashIsFilled: whether the first flash has something to start from.
    init(files: BootFiles, memorySize: UInt64, flashIsFilled: Bool, boardTree: () -> DeviceTree) throws(VMMError) {
        let memory = MemoryMap.ram..<(MemoryMap.ram + memorySize)
        let limit = Int(clamping: memorySize)
        start = MemoryMap.ram
        var firmwareEnd = MemoryMap.ram

        if case .file(let path) = files.firmware {
            let what = "Unable to load the RISC-V firmware \"\(path)\""
            let file = try BootPlan.read(path, limit: limit, what: what)
            let image = try attempt(what) { () throws(VMMError) in
                try GuestImage(file, base: MemoryMap.ram, memory: memory)
            }
            firmware = image
            start = image.entry
            firmwareEnd = image.end
        }

        let flashHasFirmware = flashIsFilled && files.firmware != .none
        if flashHasFirmware {
            // It is where the kernel would be.
            kernelEntry = MemoryMap.flash
            kernelItems = try BootPlan.items(files, limit: limit)
        } else if let path = files.kernel {
            let what = "could not load kernel '\(path)'"
            // A kernel under firmware is 2 MiB aligned and leaves the firmware
            // its room; without firmware it is what starts.
            let base: UInt64
            switch files.firmware {
            case .none: base = MemoryMap.ram
            case .builtin: base = MemoryMap.ram + BootPlan.alignment
            case .file: base = max(BootPlan.up(firmwareEnd), MemoryMap.ram + BootPlan.alignment)
            }
            let file = try BootPlan.read(path, limit: limit, what: what)
            let image = try attempt(what) { () throws(VMMError) in
                try GuestImage(file, base: base, memory: memory)
            }
            kernel = image
            kernelEntry = image.entry
            if files.firmware == .none { start = image.entry }
        } else if flashIsFilled {
            // The flash holds all of the software.
            start = MemoryMap.flash
        } else if files.firmware == .builtin {
            // Memory may hold a kernel already (a memory-backend-file).
            kernelEntry = MemoryMap.ram + BootPlan.alignment
        }

        if let path = files.initrd {
            guard files.kernel != nil else { throw VMMError("-initrd only allowed with -kernel option") }
            if !flashHasFirmware { initrd = try BootPlan.readInitrd(path, limit: limit) }
        }
        if files.kernel == nil, let line = files.commandLine, !line.isEmpty {
            throw VMMError("-append only allowed with -kernel option")
        }

        let tree = try files.deviceTree.map { path throws(VMMError) in try BootPlan.readTree(path) } ?? boardTree()
        try place(tree, files, memory)
        try refuseOverlaps()
    }

    /// Kernel, initrd and command line as UEFI's loader reads them (EDK2's QemuKernelLoaderFsDxe).
    private static func items(_ files: BootFiles, limit: Int) throws(VMMError) -> KernelItems {
        var items = KernelItems()
        guard let path = files.kernel else { return items }
        let kernel = try read(path, limit: limit, what: "could not load kernel '\(path)'").bytes
        guard !kernel.isEmpty else { throw VMMError("could not load kernel '\(path)': the file is empty") }
        items.add(FwCfgKey.kernelSize, UInt32(truncatingIfNeeded: kernel.count))
        items.add(FwCfgKey.kernelData, kernel)
        if let path = files.initrd {
            let initrd = try readInitrd(path, limit: limit)
            items.add(FwCfgKey.initrdSize, UInt32(truncatingIfNeeded: initrd.count))
            items.add(FwCfgKey.initrdData, initrd)
        }
        if let line = files.commandLine, !line.isEmpty { items.addCommandLine(Array(line.utf8) + [0]) }
        return items
    }

    private static func readInitrd(_ path: String, limit: Int) throws(VMMError) -> [UInt8] {
        let what = "could not load ramdisk '\(path)'"
        let initrd = try read(path, limit: limit, what: what).bytes
        guard !initrd.isEmpty else { throw VMMError("\(what): the file is empty") }
        return initrd
    }

    /// Puts the initrd's place and the command line into the tree, and both
    /// into memory.
    private mutating func place(_ tree: DeviceTree, _ files: BootFiles, _ memory: Range<UInt64>) throws(VMMError) {
        let chosen = tree.root.child("chosen")
        if let line = files.commandLine, !line.isEmpty { chosen.set("bootargs", line) }
        if !initrd.isEmpty {
            // The values' size is what counts for the tree's place.
            chosen.set("linux,initrd-start", cells64: [0])
            chosen.set("linux,initrd-end", cells64: [0])
        }
        let treeSize = UInt64(tree.flattened().count)
        // At the end of RAM, below 3 GiB, 2 MiB aligned, as in QEMU.
        let top = min(memory.upperBound, MemoryMap.deviceTreeLimit)
        guard treeSize <= top - memory.lowerBound else {
            throw VMMError("the device tree (\(treeSize) bytes) does not fit into guest memory")
        }
        deviceTreeAddress = (top - treeSize) & ~(BootPlan.alignment - 1)
        if deviceTreeAddress < memory.lowerBound { deviceTreeAddress = (top - treeSize) & ~7 }

        let imagesEnd = max(kernel?.end ?? 0, firmware?.end ?? 0)
        guard imagesEnd <= deviceTreeAddress || imagesEnd > MemoryMap.deviceTreeLimit else {
            throw VMMError(
                "the kernel (up to \(Hex(imagesEnd))) leaves no room for the device tree at \(Hex(deviceTreeAddress))",
                hint: "Give the guest more memory with -m.")
        }
        if !initrd.isEmpty, let kernel {
            let size = UInt64(initrd.count)
            // Half of the memory, at most 512 MiB, after the kernel's start:
            // as in QEMU, so that it does not lie in the way of a kernel that
            // unpacks itself. Where that is too tight, right behind it.
            let wanted = kernel.entry &+ min((memory.upperBound - memory.lowerBound) / 2, 512 << 20)
            initrdAddress = max(wanted, BootPlan.up(imagesEnd))
            if !fits(initrdAddress, size, memory) { initrdAddress = BootPlan.up(imagesEnd) }
            guard fits(initrdAddress, size, memory) else {
                throw VMMError(
                    "could not load ramdisk '\(files.initrd ?? "")': \(size) bytes do not fit into guest memory "
                        + "behind the kernel",
                    hint: "Give the guest more memory with -m.")
            }
            chosen.set("linux,initrd-start", cells64: [initrdAddress])
            chosen.set("linux,initrd-end", cells64: [initrdAddress + size])
        }
        deviceTree = tree.flattened()
    }

    private func fits(_ address: UInt64, _ size: UInt64, _ memory: Range<UInt64>) -> Bool {
        guard memory.contains(address), size <= memory.upperBound - address else { return false }
        return address + size <= deviceTreeAddress || address > deviceTreeAddress
    }

    private func refuseOverlaps() throws(VMMError) {
        var taken: [(start: UInt64, end: UInt64, what: String)] = [
            (deviceTreeAddress, deviceTreeAddress + UInt64(deviceTree.count), "the device tree")
        ]
        if !initrd.isEmpty { taken.append((initrdAddress, initrdAddress + UInt64(initrd.count), "the initrd")) }
        for (image, what) in [(firmware, "the firmware"), (kernel, "the kernel")] {
            for piece in image?.pieces ?? [] { taken.append((piece.address, piece.address + piece.memorySize, what)) }
        }
        for (index, a) in taken.enumerated() {
            for b in taken[(index + 1)...] where a.what != b.what && a.start < b.end && b.start < a.end {
                throw VMMError(
                    "\(a.what) (\(Hex(a.start)) to \(Hex(a.end))) and "
                        + "\(b.what) (\(Hex(b.start)) to \(Hex(b.end))) overlap")
            }
        }
    }

    /// Stores everything in guest memory, the boot ROM included.
    func load(into space: AddressSpace) throws(VMMError) {
        try firmware?.load(into: space, what: "the firmware")
        try kernel?.load(into: space, what: "the kernel")
        try BootPlan.store(initrd, space, initrdAddress, "the initrd")
        try BootPlan.store(deviceTree, space, deviceTreeAddress, "the device tree")
        let vector = ResetVector(start: start, deviceTree: deviceTreeAddress, next: kernelEntry)
        try BootPlan.store(vector.bytes, space, ResetVector.base, "the reset vector")
    }

    // MARK: Helpers

    static func store(_ bytes: [UInt8], _ space: AddressSpace, _ address: UInt64, _ what: String) throws(VMMError) {
        var failure: VMMError?
        bytes.withUnsafeBytes {
            do throws(VMMError) { try space.write($0, at: address, what: what) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    private static func up(_ address: UInt64) -> UInt64 { (address + alignment - 1) & ~(alignment - 1) }

    private static func read(_ path: String, limit: Int, what: String) throws(VMMError) -> FileBytes {
        try attempt(what) { () throws(VMMError) in
            try FileBytes.read(path, limit: UInt64(min(limit, sizeLimit)))
        }
    }

    private static func readTree(_ path: String) throws(VMMError) -> DeviceTree {
        let what = "could not load device tree '\(path)'"
        let blob = try read(path, limit: DeviceTree.maxSize, what: what).bytes
        return try attempt(what) { () throws(VMMError) in try DeviceTree(flattened: blob) }
    }
}
