import BatonRuntime
import CKVM

/// KVM's account of the host's devices that do DMA to guest memory (KVM_DEV_TYPE_VFIO of the kernel's
/// Documentation/virt/kvm/devices/vfio.rst). Where such a device's DMA does not look into caches, the guest's WBINVD and
/// types of memory must count, which KVM else ignores.
struct KVMAssignment {
    private let system: KVMSystem
    /// Nil until the first file; a kernel may have no such thing, and needs none then.
    private var device: KVMDescriptor?
    private var isAsked = false

    init(system: KVMSystem) { self.system = system }

    /// - Parameter file: a VFIO group or device, which KVM keeps open as long as the VM.
    mutating func add(_ file: Int32) {
        if !isAsked {
            isAsked = true
            var request = kvm_create_device()
            request.type = UInt32(KVM_DEV_TYPE_VFIO.rawValue)
            if system.vm.call(CKVM_CREATE_DEVICE, &request) >= 0 { device = KVMDescriptor(Int32(request.fd)) }
        }
        guard let device else { return }
        var file = file
        // With Linux 6.6 group and device files are one to it, by the older name's numbers.
        let result = device.attribute(CKVM_SET_DEVICE_ATTR, group: KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, &file)
        // A group has several devices, and an older kernel takes no device's file.
        guard result < 0, result != -EEXIST, result != -EINVAL, result != -EBADF else { return }
        Report.warning(VMMError.system("Failed to add fd \(file) to KVM VFIO device", errno: -result).message)
    }
}
