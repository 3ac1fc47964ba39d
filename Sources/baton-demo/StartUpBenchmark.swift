import Foundation
import ProcessSupport

/// How long from the start of the VMM until its guest counts, seen in the
/// guest's RAM by this process, and where that time goes.
struct StartUpBenchmark {
    let vmm: String
    let repetitions: Int
    let directory: TemporaryDirectory

    func run() throws {
        let image = directory.file("counter.bin")
        try GuestBuilder().build(.counter, to: image)
        // In turn, as the machine's speed changes.
        let both = try (0..<max(repetitions, 1)).map { _ in
            (on: try once(image: image), off: try once(image: image, ["-sandbox", "off"]))
        }
        let ratios = both.map { $0.on / $0.off }.sorted()
        print("start-up, counting guest (\(both.count) times):")
        print("  exec to the guest's first count   \(Summary(both.map(\.on)))")
        print("  the same in no sandbox            \(Summary(both.map(\.off)))")
        print("  ratio                             \(String(format: "%.3f", ratios[ratios.count / 2]))")
        print("  of that, shared libraries         \(Summary([try dynamicLoading(image: image)]))")
        let idle = try (0..<max(repetitions, 1)).map { _ in try self.idle() }
        print("  the process alone (-version)      \(Summary(idle))")
    }

    private func arguments(image: String, memory: String) -> [String] {
        [
            vmm, "-machine", "virt,memory-backend=ram",
            "-object", "memory-backend-file,id=ram,size=64M,share=on,mem-path=\(memory)", "-m", "64M",
            "-bios", "none", "-kernel", image, "-nographic", "-serial", "null", "-monitor", "none",
        ]
    }

    private func once(image: String, _ more: [String] = []) throws -> Double {
        let page = try CounterPage(path: directory.file("ram"))
        let start = Clock.now
        let process = try VMMProcess(
            arguments(image: image, memory: page.path) + more, log: directory.file("vmm.log"))
        while page.count == 0 {
            if Clock.now - start > 30 { throw Failure("the guest does not count: \(process.epitaph())") }
            // Of two processors one would be gone, and the VM's processes take turns on the other.
            usleep(20)
        }
        return (Clock.now - start) * 1000
    }

    /// What the dynamic loader says it took, in ms.
    private func dynamicLoading(image: String) throws -> Double {
        let result = try Tool.run(["env", "LD_DEBUG=statistics", vmm, "-version"])
        let line = result.errors.split(separator: "\n").first { $0.contains("total startup time in dynamic loader") }
        let cycles = line?.split(separator: " ").compactMap { Double($0) }.last ?? 0
        return cycles / (try Self.cyclesPerMillisecond())
    }

    /// The loader counts in the CPU's time stamps.
    private static func cyclesPerMillisecond() throws -> Double {
        let info = try String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)
        let line = info.split(separator: "\n").first { $0.hasPrefix("cpu MHz") }
        let megahertz = line?.split(separator: ":").last.flatMap { Double($0.trimmingCharacters(in: .whitespaces)) }
        return (megahertz ?? 1000) * 1000
    }

    private func idle() throws -> Double {
        let start = Clock.now
        let process = try VMMProcess([vmm, "-version"], log: directory.file("vmm.log"))
        while process.isRunning { usleep(50) }
        return (Clock.now - start) * 1000
    }
}

/// Median and range of a few measurements in ms; of many, the 99th percentile too.
struct Summary: CustomStringConvertible {
    let description: String
    let median: Double

    init(_ samples: [Double]) {
        let sorted = samples.sorted()
        guard let low = sorted.first, let high = sorted.last else {
            description = "-"
            median = 0
            return
        }
        median = sorted[sorted.count / 2]
        var text = String(format: "%7.2f ms", median)
        if sorted.count >= 100 {
            text += String(format: "  (99th percentile %.2f, %.2f to %.2f)", sorted[sorted.count * 99 / 100], low, high)
        } else if sorted.count > 1 {
            text += String(format: "  (%.2f to %.2f)", low, high)
        }
        description = text
    }
}
