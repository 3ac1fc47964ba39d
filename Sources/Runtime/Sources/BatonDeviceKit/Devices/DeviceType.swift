import BatonBase
import BatonMachine

/// What `-device help` lists a device type under, as QEMU does.
public enum DeviceCategory: String, CaseIterable {
    case bridge = "Controller/Bridge/Hub"
    case storage = "Storage"
    case network = "Network"
    case input = "Input"
    case misc = "Misc"
}

/// One name of `-device`.
///
/// Implemented by parts of the VMM and by modules, which register instances
/// with `ModuleRegistrar.add`. A module's type is found when its module was
/// named with `-module`, or lies in a module directory as `device-NAME` or
/// `preserver-NAME` for the type's name or what is before one of its dashes:
/// `-device NAME-WHAT-pci` loads `preserver-NAME`.
public protocol DeviceType: AnyObject {
    /// As on the command line, unique.
    var name: String { get }
    /// One line for `-device help`; empty for none.
    var summary: String { get }
    /// The type of the bus that it plugs into, as `-device help` shows it:
    /// `PCI`, `virtio-bus`. PCI devices get `addr` and `multifunction` without
    /// having them in `properties`.
    var bus: String { get }
    var category: DeviceCategory { get }
    /// What it takes besides `driver`, `id` and `bus`.
    var properties: [DeviceProperty] { get }
    /// Whether one may be plugged while the machine exists, and taken away: off by default. `make` may be called at any
    /// time then, and what it had of others is given back in `DeviceContext.whenUnplugged`.
    var isHotPluggable: Bool { get }
    /// Makes one device: plugs it into its bus and adds it to the VM.
    ///
    /// Called while the machine is built, in the order of the command line;
    /// also in a process that takes over a guest, where nothing may touch guest
    /// memory, or what the process before still owns, before the commit.
    /// - Throws: why there is no such device; then everything is as before.
    func make(_ options: DeviceOptions, context: DeviceContext) throws(VMMError)
}

extension DeviceType {
    public var summary: String { "" }
    public var isHotPluggable: Bool { false }

    /// Whether `-device` takes a key.
    public func accepts(_ key: String) -> Bool {
        properties.contains { $0.name == key }
            || (bus == PCIProperties.busType && PCIProperties.all.contains { $0.name == key })
    }

    /// The type's line of `-device help`.
    public var helpLine: String {
        "name \"\(name)\", bus \(bus)" + (summary.isEmpty ? "" : ", desc \"\(summary)\"") + "\n"
    }

    /// The text of `-device NAME,help`.
    public var help: String {
        let all = properties + (bus == PCIProperties.busType ? PCIProperties.all : [])
        return DeviceProperty.help(all, of: name)
    }
}

extension DeviceProperty {
    /// Those of a virtio device on PCI, besides those of every PCI device.
    public static let virtioPCI = [
        DeviceProperty("vectors", "uint32", "how many MSI-X vectors; 0 for none"),
        DeviceProperty("disable-legacy", "OnOffAuto", "on, as there is only virtio 1"),
        DeviceProperty("disable-modern", "bool", "off, as there is only virtio 1"),
    ]
}

/// The properties that every PCI device has.
enum PCIProperties {
    static let busType = "PCI"
    static let all = [
        DeviceProperty("addr", "str", "slot and optional function number, as 05.0"),
        DeviceProperty("multifunction", "bool", "whether the slot has more functions"),
    ]
}
