import BatonBase
import BatonMachine

/// One name of `-netdev` that a module provides.
///
/// Registered with `ModuleRegistrar.add`. It is found when its module was
/// named with `-module`, or lies in a module directory as `preserver-NAME` or
/// `device-NAME` for the type's name or what is before one of its dashes:
/// `-netdev NAME` loads `preserver-NAME`.
public protocol NetBackendType: AnyObject {
    /// As on the command line, unique.
    var name: String { get }
    /// What it takes besides `type` and `id`, for `-netdev NAME,help`.
    var properties: [DeviceProperty] { get }
    /// Makes a back end.
    ///
    /// Also called in a process that takes over a guest: what the process
    /// before left is there with `NetHeritage.find`. In a trial
    /// (`vm.handover?.isTrial`) nothing may be opened, made, sent or touched.
    /// - Parameter options: of which `type` and `id` are taken; to be finished
    ///   with `finish`.
    /// - Throws: why there is no such back end; then everything is as before.
    func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) -> NetBackend
}

extension NetBackendType {
    public var properties: [DeviceProperty] { [] }
}
