import BatonBase
import BatonMachine

/// `-object iothread`: accepted for QEMU's sake. Requests of a disk are carried out by its engine (`aio=`), beside guest and
/// loop, whether its device names one or not; the rings are served by the loop.
public final class IOThreadType: ObjectType {
    public let name = "iothread"
    public let summary = "accepted for QEMU's sake: disks are carried out beside the guest anyway"
    public let properties = [
        DeviceProperty("poll-max-ns", "int", "accepted for QEMU's sake"),
        DeviceProperty("poll-grow", "int", "accepted for QEMU's sake"),
        DeviceProperty("poll-shrink", "int", "accepted for QEMU's sake"),
        DeviceProperty("aio-max-batch", "int", "accepted for QEMU's sake"),
        DeviceProperty("thread-pool-min", "int", "accepted for QEMU's sake"),
        DeviceProperty("thread-pool-max", "int", "accepted for QEMU's sake"),
    ]

    public init() {}

    public func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) {
        for property in properties { _ = try options.number(property.name, in: 0...UInt64(Int64.max)) }
        try options.finish()
        vm.parts(IOThreads.self).ids.insert(id)
    }
}

/// The ids of `-object iothread`.
final class IOThreads: MachineParts {
    fileprivate var ids: Set<String> = []
}

extension VirtualMachine {
    /// Whether there is an `-object iothread` of that id.
    public func hasIOThread(_ id: String) -> Bool { parts(IOThreads.self).ids.contains(id) }
}
