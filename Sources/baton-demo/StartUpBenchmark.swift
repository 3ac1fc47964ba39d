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
        let samples = try (0..<max(repetitions, 1)).map { _ in try once(image: image) }
        print("start-up, counting guest (\(samples.count) times):")
        print("  exec to the guest's first count   \(Summary(samples))")
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

    private func once(image: String) throws -> Double {
        let page = try CounterPage(path: directory.file("ram"))
        let start = Clock.now
        let process = try VMMProcess(arguments(image: image, memory: page.path), log: directory.file("vmm.log"))
        while page.count == 0 {
            if Clock.now - start > 30 { throw Failure("the guest does not count: \(process.epitaph())") }
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

/// The page that the counter guest keeps at 0x80400000, in a file that is its RAM.
final class CounterPage {
    let path: String
    private let words: UnsafeMutableRawPointer

    /// Makes the file, of so many bytes, none of them there yet.
    /// - Parameter used: bytes of RAM from 8 MiB on that the guest uses all the time.
    init(path: String, size: Int = 64 << 20, used: Int = 0) throws {
        self.path = path
        unlink(path)
        let fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0, ftruncate(fd, off_t(size)) == 0,
            let map = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 << 20), map != MAP_FAILED
        else { throw Failure.system("cannot make \(path)") }
        close(fd)
        words = map
        words.storeBytes(of: UInt64(used), toByteOffset: 0x20, as: UInt64.self)
    }

    deinit {
        munmap(words, 4096)
        unlink(path)
    }

    /// The guest's counter; it writes while we read.
    @inline(never)
    var count: UInt64 { words.load(fromByteOffset: 8, as: UInt64.self) }

    /// How often the guest has used all that it is to use; nil when that is nothing.
    var rounds: UInt64? {
        words.load(fromByteOffset: 0x20, as: UInt64.self) == 0 ? nil : words.load(fromByteOffset: 0x28, as: UInt64.self)
    }
}

/// Median and range of a few measurements in ms.
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
        description =
            sorted.count == 1
            ? String(format: "%7.2f ms", median)
            : String(format: "%7.2f ms  (%.2f to %.2f)", median, low, high)
    }
}
