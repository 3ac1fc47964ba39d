import BatonRuntime
import Glibc

/// Where the guest's view of the expansion ROM comes from.
public enum VFIOROMSource {
    /// The device.
    case device
    /// There is none (`rombar=0`, or an empty `romfile=`).
    case none
    /// `romfile=`.
    case file([UInt8])

    /// Bytes of a ROM that is larger are not shown.
    static let most = 64 << 20

    /// The options of a device type.
    public static let properties = [
        DeviceProperty("rombar", "uint32", "0: no expansion ROM"),
        DeviceProperty("romfile", "str", "file to have in place of the device's expansion ROM"),
    ]

    /// Reads `rombar=` and `romfile=`.
    public init(_ options: DeviceOptions) throws(VMMError) {
        let shown = try options.options.number("rombar", in: 0...UInt64(UInt32.max)) != 0
        guard let path = try options.text("romfile") else {
            self = shown ? .device : .none
            return
        }
        self = shown && !path.isEmpty ? .file(try VFIOROMSource.read(path)) : .none
    }

    private static func read(_ path: String) throws(VMMError) -> [UInt8] {
        let fd = HostAccess.open(path, O_RDONLY | O_NONBLOCK)
        guard fd >= 0 else { throw .system("failed to find romfile \"\(path)\"") }
        let file = OwnedFD(adopting: fd)
        var status = stat()
        guard fstat(file.raw, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw VMMError("failed to load romfile \"\(path)\": it is not a file")
        }
        guard status.st_size > 0 else { throw VMMError("romfile \"\(path)\" is empty") }
        guard let size = Int(exactly: status.st_size), size <= most else {
            throw VMMError("romfile \"\(path)\" too large (size cannot exceed 64 MiB)")
        }
        var bytes = [UInt8](repeating: 0, count: size)
        let count = bytes.withUnsafeMutableBytes { buffer in
            retryingInterrupts { pread(file.raw, buffer.baseAddress, size, 0) }
        }
        guard count == size else { throw VMMError("failed to load romfile \"\(path)\"") }
        return bytes
    }
}

/// The expansion ROM that the guest sees. The device's own is read when the
/// guest first does, as that may take long.
final class VFIOROM: MMIODevice {
    private unowned let device: VFIOPCIDevice
    private var contents: [UInt8]?
    /// Of the BAR.
    let size: UInt64

    /// - Returns: nil when there is nothing to be shown.
    init?(_ device: VFIOPCIDevice, _ source: VFIOROMSource) {
        self.device = device
        let region = device.shape.romRegion
        let length: UInt64
        switch source {
        case .none: return nil
        case .file(let bytes):
            contents = bytes
            length = UInt64(bytes.count)
        case .device: length = region.allows(VFIO.RegionFlag.read) ? region.size : 0
        }
        guard length > 0 else { return nil }
        guard length <= UInt64(VFIOROMSource.most) else {
            Report.warning("\(device.label): the expansion ROM of \(length) bytes is not shown to the guest")
            return nil
        }
        var size: UInt64 = 2048
        while size < length { size *= 2 }
        self.size = size
    }

    private func load() -> [UInt8] {
        if let contents { return contents }
        let region = device.shape.romRegion
        var bytes = [UInt8](repeating: 0xff, count: Int(truncatingIfNeeded: min(region.size, size)))
        let result = bytes.withUnsafeMutableBytes { device.transport.read(region, at: 0, into: $0) }
        if result != 0 {
            let what = "\(device.label): Device ROM contents are not available"
            Report.warning(VMMError.system(what, errno: result).message)
            bytes = []
        }
        contents = bytes
        return bytes
    }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        let bytes = load()
        var value: UInt64 = 0
        for index in 0..<width {
            let at = Int(truncatingIfNeeded: offset) + index
            value |= UInt64(bytes.indices.contains(at) ? bytes[at] : 0xff) << UInt64(8 * index)
        }
        return value
    }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        Log.guestError("\(device.stateName): write to the expansion ROM")
    }
}
