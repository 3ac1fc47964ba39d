import BatonBase
import BatonMachine

/// One name of `-object` that is no memory backend. What devices are given by
/// the object's id.
///
/// Registered with `ModuleRegistrar.add`. It is found when its module was
/// named with `-module`, or lies in a module directory and exports a symbol that
/// says so: `baton_module_provides_object_NAME`, with `_` for each `-`.
public protocol ObjectType: AnyObject {
    /// As on the command line, unique.
    var name: String { get }
    /// One line for `-object help`.
    var summary: String { get }
    /// What it takes besides `id`, for `-object NAME,help`.
    var properties: [DeviceProperty] { get }
    /// Makes one object, before any device is made.
    ///
    /// Also called in a process that takes over a guest: what the process
    /// before left is in `vm.handover`. In a trial (`vm.handover?.isTrial`) nothing may
    /// be opened, made, sent or touched.
    /// - Parameters:
    ///   - id: no other object has it.
    ///   - options: of which `qom-type` and `id` are taken; to be finished with
    ///     `finish`.
    /// - Throws: why there is no such object; then everything is as before.
    func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError)
    /// Takes an object away while the machine exists.
    /// - Throws: why not, such as that a device uses it; then everything is as before. By default always.
    func remove(id: String, vm: VirtualMachine) throws(VMMError)
}

extension ObjectType {
    public var properties: [DeviceProperty] { [] }

    public func remove(id: String, vm: VirtualMachine) throws(VMMError) {
        throw VMMError("object '\(id)' is in use, can not be deleted")
    }

    /// The text of `-object NAME,help`.
    public var help: String { DeviceProperty.help(properties, of: name) }
}
