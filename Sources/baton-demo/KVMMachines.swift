import Foundation
import ProcessSupport

/// The tiny x86-64 guest on KVM, under baton, under QEMU's microvm, and under a loop in C that does nothing but run it.
struct KVMMachines {
    enum Runner: CaseIterable {
        case bareLoop, baton, qemu

        var title: String {
            switch self {
            case .bareLoop: "KVM_RUN loop in C"
            case .baton: "baton"
            case .qemu: "QEMU"
            }
        }
    }

    let vmm: String
    /// nil: not to be had.
    var qemu: QEMUInstallation?
    private let directory: TemporaryDirectory
    private let guest: String
    private let bareLoop: String

    /// Of guests whose pause is not measured.
    static let memory = (name: "64M", bytes: 64 << 20)
    /// A memory file system, where there is one.
    private static let parent =
        FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()

    /// Builds the guest and the loop.
    init(vmm: String, qemu: QEMUInstallation?, directory: TemporaryDirectory) throws {
        (self.vmm, self.qemu, self.directory) = (vmm, qemu, directory)
        (guest, bareLoop) = (directory.file("microvm.elf"), directory.file("bare-loop"))
        let builder = try GuestBuilder()
        try builder.build(.microvm, to: guest)
        try builder.buildBareLoop(to: bareLoop)
    }

    /// Those that are to be had.
    var runners: [Runner] { Runner.allCases.filter { $0 != .qemu || qemu != nil } }

    /// A guest's memory that is a file of ours.
    func page(bytes: Int = KVMMachines.memory.bytes) throws -> CounterPage {
        try CounterPage(path: "\(Self.parent)/baton-bench-kvm-\(getpid())", size: bytes)
    }

    /// QEMU starts such a kernel the fastest with qboot for its firmware; SeaBIOS does much that nobody needs.
    func arguments(_ runner: Runner, page: CounterPage, size: String = KVMMachines.memory.name) -> [String] {
        let shared = [
            "-accel", "kvm", "-object", "memory-backend-file,id=ram,size=\(size),share=on,mem-path=\(page.path)",
            "-m", size, "-kernel", guest, "-nodefaults", "-nographic", "-serial", "null", "-monitor", "none",
        ]
        switch runner {
        case .bareLoop: return [bareLoop, guest, page.path, "\(Self.memory.bytes)"]
        case .baton: return [vmm, "-machine", "microvm,memory-backend=ram"] + shared
        case .qemu:
            return (qemu?.command ?? []) + ["-no-user-config", "-bios", "qboot.rom"]
                + ["-machine", "microvm,memory-backend=ram,aux-ram-share=on"] + shared
        }
    }

    /// Runs the guest until `body` has returned.
    func run<R>(_ runner: Runner, _ body: (_ process: VMMProcess, _ page: CounterPage) throws -> R) throws -> R {
        let page = try page()
        let process = try VMMProcess(arguments(runner, page: page), log: directory.file("kvm.log"))
        try wait(process, "the guest to count") { page.count > 0 }
        return try body(process, page)
    }

    /// Looks all the time: what is waited for is timed.
    func wait(_ process: VMMProcess, _ what: String, _ condition: () -> Bool) throws {
        let end = Clock.now + 30
        while !condition() {
            guard process.isRunning, Clock.now < end else { throw Failure("no \(what): \(process.epitaph())") }
        }
    }
}
