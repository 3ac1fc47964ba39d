import Foundation
import ProcessSupport

/// What a guest on KVM sees of its VMM, beside QEMU's microvm and a bare KVM_RUN loop: start-up, memory, exits, stops
/// and updates.
struct KVMBenchmark {
    private var machines: KVMMachines
    private let repetitions: Int
    private let directory: TemporaryDirectory

    /// A serial port's scratch register, and the magic number of the first virtio-mmio slot.
    private static let places: [(name: String, place: UInt64)] = [("port", 0x3ff), ("MMIO", 0xfeb0_0000)]
    private static let rounds = 5
    /// Short enough (a ms where KVM is emulated) that nothing else runs in the middle of most.
    private static let batches = 100
    private static let readsInBatch = 100

    init(vmm: String, qemu: QEMUInstallation?, repetitions: Int, directory: TemporaryDirectory) throws {
        machines = try KVMMachines(vmm: vmm, qemu: qemu, directory: directory)
        self.repetitions = max(repetitions, 1)
        self.directory = directory
    }

    /// Why there is nothing to measure on this machine; nil if there is.
    static var obstacle: String? {
        #if arch(x86_64)
        access("/dev/kvm", R_OK | W_OK) == 0 ? nil : Failure.system("/dev/kvm").description
        #else
        "the guest is for x86-64"
        #endif
    }

    mutating func run() throws {
        do {
            try machines.run(.bareLoop) { _, _ in }
        } catch {
            print("KVM: skipped, as it does not run the guest: \(error)")
            return
        }
        do {
            if machines.qemu != nil { try machines.run(.qemu) { _, _ in } }
        } catch {
            print("no QEMU to measure beside on KVM, as it does not run the guest: \(error)")
            machines.qemu = nil
        }
        try startUp()
        try memory()
        try exits()
        try KVMPauseBenchmark(machines: machines, repetitions: repetitions, directory: directory).run()
    }

    // MARK: Start-up

    private func startUp() throws {
        print("KVM, process start to the guest's first instruction (\(repetitions) times):")
        var own: Summary?
        for runner in machines.runners {
            let summary = Summary(try (0..<repetitions).map { _ in try start(runner) })
            row(title(runner), "\(summary)")
            if runner == .baton { own = summary }
            if runner == .qemu, let own { ratio(own.median, summary.median) }
        }
    }

    private func start(_ runner: KVMMachines.Runner) throws -> Double {
        let page = try machines.page()
        let begin = Clock.now
        let process = try VMMProcess(machines.arguments(runner, page: page), log: directory.file("kvm.log"))
        try machines.wait(process, "instruction of the guest") { page.isEntered }
        return (Clock.now - begin) * 1000
    }

    // MARK: Memory

    private func memory() throws {
        print("KVM, memory beside the guest's \(KVMMachines.memory.name):")
        var own: ProcessMemory?
        for runner in machines.runners where runner != .bareLoop {
            let memory = try machines.run(runner) { process, page in
                // What only its start needed has had the time to go.
                usleep(500_000)
                return try ProcessMemory(pid: process.pid, besides: page.path)
            }
            row(title(runner), "\(megabytes(memory.proportional)) (PSS), \(megabytes(memory.own)) of its own")
            if runner == .baton { own = memory }
            if runner == .qemu, let own { ratio(Double(own.proportional), Double(memory.proportional)) }
        }
    }

    private func megabytes(_ kilobytes: Int) -> String { String(format: "%7.1f MiB", Double(kilobytes) / 1024) }

    // MARK: Exits

    /// In turns, so that what else the machine does is spread over all.
    private func exits() throws {
        var samples: [KVMMachines.Runner: [[Double]]] = [:]
        for _ in 0..<Self.rounds {
            for runner in machines.runners {
                let times = try machines.run(runner) { process, page in
                    page.calibrate()
                    return try Self.places.map { try read($0.place, process, page) }
                }
                for (index, values) in times.enumerated() {
                    samples[runner, default: Self.places.map { _ in [] }][index] += values
                }
            }
        }
        let bare = samples[.bareLoop] ?? []
        for (index, place) in Self.places.enumerated() {
            print("KVM, an exit for a read of a device, \(place.name) (\(Self.rounds * Self.batches) times):")
            let base = Percentiles(bare[index])
            for runner in machines.runners {
                guard let values = samples[runner]?[index] else { continue }
                let own = Percentiles(values)
                let text = String(
                    format: "%7.0f ns  (10th percentile %.0f, 90th %.0f)", own.median, own.tenth, own.ninetieth)
                let more = String(format: "  %+.0f ns (%+.0f)", own.median - base.median, own.tenth - base.tenth)
                row(title(runner), runner == .bareLoop ? text : text + more)
            }
        }
    }

    private struct Percentiles {
        let tenth, median, ninetieth: Double

        init(_ values: [Double]) {
            let sorted = values.sorted()
            func percentile(_ part: Int) -> Double { sorted.isEmpty ? 0 : sorted[sorted.count * part / 100] }
            (tenth, median, ninetieth) = (percentile(10), percentile(50), percentile(90))
        }
    }

    /// - Returns: ns of one read, from each batch.
    private func read(_ place: UInt64, _ process: VMMProcess, _ page: CounterPage) throws -> [Double] {
        try (0..<Self.batches).map { _ in
            page.startReads(Self.readsInBatch, of: place)
            let end = Clock.now + 30
            while true {
                // This process takes no processor meanwhile.
                usleep(1000)
                if let reads = page.reads { return reads.nanoseconds / Double(Self.readsInBatch) }
                guard process.isRunning, Clock.now < end else { throw Failure("no reads: \(process.epitaph())") }
            }
        }
    }

    // MARK: Output

    private func title(_ runner: KVMMachines.Runner) -> String {
        runner == .qemu ? "QEMU \(machines.qemu?.version ?? "")" : runner.title
    }

    private func row(_ name: String, _ text: String) {
        print("  \(name.padding(toLength: 40, withPad: " ", startingAt: 0))\(text)")
    }

    private func ratio(_ own: Double, _ other: Double) {
        print("    baton / QEMU: " + String(format: "%.3f", own / other))
    }
}
