import ArgumentParser

/// The machines that Debian is shown on.
enum GuestMachine: String, CaseIterable, ExpressibleByArgument {
    /// riscv64, on CPUs in software.
    case virt
    /// x86-64, under KVM.
    case microvm

    /// Debian's name for the CPUs.
    var architecture: String { self == .virt ? "riscv64" : "amd64" }

    /// Options of clang for a program of the guest's.
    var compilerOptions: [String] {
        switch self {
        case .virt: ["--target=riscv64-unknown-elf", "-march=rv64imac", "-mabi=lp64", "-mcmodel=medany"]
        case .microvm: ["--target=x86_64-unknown-linux-gnu", "-march=x86-64"]
        }
    }

    /// Options of the VMM, with 512 MB of RAM that an update keeps.
    /// - Parameters:
    ///   - bios: firmware of `virt`; `microvm` starts a kernel without.
    ///   - aia: interrupt controllers of `virt` in place of the PLIC.
    ///   - pci: the machine has PCI devices, for which `microvm` needs a bus.
    func options(bios: String, aia: String? = nil, pci: Bool = false) -> [String] {
        var machine = "\(rawValue),memory-backend=ram"
        if let aia { machine += ",aia=\(aia)" }
        if pci, self == .microvm { machine += ",pcie=on" }
        return ["-machine", machine, "-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-m", "512M"]
            + (self == .virt ? ["-bios", bios] : ["-accel", "kvm", "-cpu", "host"])
    }
}
