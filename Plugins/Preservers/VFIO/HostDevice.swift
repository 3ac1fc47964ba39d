import BatonRuntime
import Glibc

/// Which device of the host: `host=DDDD:BB:DD.F`, `sysfsdev=PATH`, or `fd=`,
/// which somebody else has opened.
struct VFIOHostDevice {
    /// The kernel's name of it, as in errors: `0000:06:0d.0`; with `fd=` the
    /// device's id.
    let name: String
    let sysfsPath: String
    /// `fd=`.
    let file: String?
    /// Without an id the next process cannot tell which device is meant.
    let blocker: String?

    /// - Throws: QEMU's errors for values that are none.
    init(_ options: DeviceOptions, usesIOMMUFD: Bool) throws(VMMError) {
        let host = try options.text("host")
        let path = try options.text("sysfsdev")
        file = try options.text("fd")
        if let file {
            guard usesIOMMUFD else { throw VMMError("Use FD passing only with iommufd backend") }
            name = options.id ?? "VFIO_FD\(file)"
            blocker = options.id == nil ? "vfio device with fd=\(file) needs an id property" : nil
            sysfsPath = ""
            return
        }
        blocker = nil
        if let path {
            guard let last = path.split(separator: "/" as Character).last, path.utf8.first == UInt8(ascii: "/") else {
                throw options.badValue("sysfsdev", path)
            }
            name = String(last)
            sysfsPath = path
            return
        }
        guard let host else {
            throw VMMError(
                "No provided host device",
                hint: "Use -device vfio-pci,host=DDDD:BB:DD.F or -device vfio-pci,sysfsdev=PATH_TO_DEVICE or "
                    + "-device vfio-pci,fd=DEVICE_FD")
        }
        guard let address = VFIOHostDevice.address(host) else { throw options.badValue("host", host) }
        name = address
        sysfsPath = "/sys/bus/pci/devices/\(address)"
    }

    /// Parses `[DDDD:]BB:DD.F`, hexadecimal.
    /// - Returns: it as the kernel writes it.
    private static func address(_ text: String) -> String? {
        var parts = text.split(separator: ":" as Character, omittingEmptySubsequences: false)
        if parts.count == 2 { parts.insert("0", at: 0) }
        guard parts.count == 3 else { return nil }
        let slot = parts[2].split(separator: "." as Character, omittingEmptySubsequences: false)
        guard slot.count == 2, let domain = hex(parts[0], digits: 4, below: 0x10000),
            let bus = hex(parts[1], digits: 2, below: 0x100), let device = hex(slot[0], digits: 2, below: 32),
            let function = hex(slot[1], digits: 1, below: 8)
        else { return nil }
        return address(domain: domain, bus: bus, device: device, function: function)
    }

    /// As the kernel writes it: `0000:06:0d.0`.
    static func address(domain: Int, bus: Int, device: Int, function: Int) -> String {
        "\(padded(domain, 4)):\(padded(bus, 2)):\(padded(device, 2)).\(function)"
    }

    private static func hex(_ text: Substring, digits: Int, below limit: Int) -> Int? {
        let hasSign = text.utf8.first == UInt8(ascii: "+") || text.utf8.first == UInt8(ascii: "-")
        guard (1...digits).contains(text.utf8.count), !hasSign,
            let value = Int(text, radix: 16), value < limit
        else { return nil }
        return value
    }

    private static func padded(_ value: Int, _ width: Int) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }

    /// - Throws: an error when there is no such device.
    func check() throws(VMMError) {
        guard access(sysfsPath, F_OK) == 0 else {
            throw .system(
                "no such host device: \(sysfsPath)", hint: "lspci -D lists the devices of this host.")
        }
    }

    /// The number of the IOMMU group, from sysfs.
    func groupNumber() throws(VMMError) -> Int {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let length = readlink("\(sysfsPath)/iommu_group", &buffer, Int(PATH_MAX))
        guard length > 0 else {
            throw .system("no iommu_group found", hint: "The host needs an IOMMU, switched on (intel_iommu=on).")
        }
        let target = String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        guard let last = target.split(separator: "/" as Character).last, let number = Int(last), number >= 0,
            number <= Int(Int32.max)
        else { throw VMMError("failed to read \(sysfsPath)/iommu_group: '\(target)' is no group") }
        return number
    }
}
