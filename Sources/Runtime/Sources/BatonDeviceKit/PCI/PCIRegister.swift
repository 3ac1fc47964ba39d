/// Offsets and bits of the configuration space's header (PCI 3.0, 6.1; PCI
/// Express 5.0, 7.5.1).
public enum PCIRegister {
    public static let vendorID = 0x00
    public static let deviceID = 0x02
    public static let command = 0x04
    public static let status = 0x06
    public static let revisionID = 0x08
    /// Three bytes: programming interface, subclass, base class.
    public static let classCode = 0x09
    public static let cacheLineSize = 0x0c
    public static let headerType = 0x0e
    public static let firstBar = 0x10
    public static let subsystemVendorID = 0x2c
    public static let subsystemID = 0x2e
    /// Bit 0 is its enable bit.
    public static let expansionROM = 0x30
    public static let capabilities = 0x34
    public static let interruptLine = 0x3c
    public static let interruptPin = 0x3d
    /// Where capabilities may start.
    public static let headerEnd = 0x40
    public static let extendedStart = 0x100

    /// `headerType`: the slot has more functions.
    public static let multifunction: UInt8 = 0x80
    /// `headerType`: that of a bridge.
    public static let bridge: UInt8 = 0x01
}

/// Bits of the command register.
public enum PCICommand {
    public static let ioSpace: UInt16 = 1 << 0
    public static let memorySpace: UInt16 = 1 << 1
    public static let busMaster: UInt16 = 1 << 2
    public static let serrEnable: UInt16 = 1 << 8
    public static let interruptDisable: UInt16 = 1 << 10
}

/// Bits of the status register.
public enum PCIStatus {
    public static let interrupt: UInt16 = 1 << 3
    public static let capabilitiesList: UInt16 = 1 << 4
    /// Errors, cleared by writing ones.
    static let clearable: UInt16 = 0xf900
}

/// Capability ids (PCI Code and ID Assignment Specification).
public enum PCICapabilityID {
    public static let msi: UInt8 = 0x05
    public static let vendor: UInt8 = 0x09
    public static let express: UInt8 = 0x10
    public static let msix: UInt8 = 0x11
}

/// What a function says that it is.
public struct PCIIdentity {
    public var vendor: UInt16
    public var device: UInt16
    /// Base class and subclass: 0x0100 for SCSI storage.
    public var classCode: UInt16
    public var programmingInterface: UInt8
    public var revision: UInt8
    public var subsystemVendor: UInt16
    public var subsystem: UInt16
    /// 1 to 4 for INTA to INTD, 0 for none.
    public var interruptPin: UInt8

    public init(
        vendor: UInt16, device: UInt16, classCode: UInt16, programmingInterface: UInt8 = 0, revision: UInt8 = 0,
        subsystemVendor: UInt16 = 0, subsystem: UInt16 = 0, interruptPin: UInt8 = 1
    ) {
        self.vendor = vendor
        self.device = device
        self.classCode = classCode
        self.programmingInterface = programmingInterface
        self.revision = revision
        self.subsystemVendor = subsystemVendor
        self.subsystem = subsystem
        self.interruptPin = interruptPin
    }
}

/// Where a function is on its bus.
public struct PCISlot: Equatable, Hashable {
    /// 0 to 31.
    public let device: Int
    /// 0 to 7.
    public let function: Int

    public init(device: Int, function: Int) {
        precondition((0..<32).contains(device) && (0..<8).contains(function))
        self.device = device
        self.function = function
    }

    /// The device and function number as one byte.
    public var devfn: Int { device << 3 | function }

    /// Parses `addr=`: `05`, `05.0`, in hexadecimal; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: "." as Character, omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count), let device = PCISlot.hex(parts[0]), device < 32 else { return nil }
        var function = 0
        if parts.count == 2 {
            guard let number = PCISlot.hex(parts[1]), number < 8 else { return nil }
            function = number
        }
        self.init(device: device, function: function)
    }

    private static func hex(_ text: Substring) -> Int? {
        guard (1...2).contains(text.utf8.count), text.utf8.first != UInt8(ascii: "+"),
            text.utf8.first != UInt8(ascii: "-")
        else { return nil }
        return Int(text, radix: 16)
    }

    /// As `addr=` shows it: `05.0`.
    public var description: String {
        let digits = String(device, radix: 16)
        return (digits.utf8.count < 2 ? "0" : "") + digits + "." + String(function)
    }
}
