import Foundation
import ProcessSupport

/// Requests to a disk a second, and how long one takes, beside QEMU with the same image, options and kind of memory. The guest
/// only queues and waits (Tests/Guests/blockload), so that the disk is measured and not the hart.
struct BlockBenchmark {
    let vmm: String
    /// The words before the options; nil if there is none.
    let qemu: [String]?
    let repetitions: Int
    let directory: TemporaryDirectory

    /// How the image is opened, by both.
    private static let backEnds = ["cache=writeback,aio=threads", "cache=none,aio=io_uring"]
    /// Memory that outlives the process, as Baton's guests have it and QEMU's CPR needs it. Its pages are small where the host
    /// has huge ones for private memory only (`shmem_enabled`), and a request to a disk then has as many parts.
    private static let sharedMemory = [
        "-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-machine", "memory-backend=ram",
    ]
    private static let imageMegabytes = 64
    private static let serials = "baton-blockload: "

    /// One kind of work, as the guest names it: the operation, bytes of a request, requests at a time.
    private struct Work: Hashable {
        let operation: String
        let bytes: Int
        let depth: Int

        /// Small requests one after the other are about the time that one takes, all others about how many there are.
        var isLatency: Bool { depth == 1 }
    }

    func run() throws {
        let guest = directory.file("blockload.bin")
        try GuestBuilder().build(.blockload, to: guest)
        let image = directory.file("blockload.img")
        // With contents: what is not there need not be read.
        try Data(repeating: 0xb5, count: Self.imageMegabytes << 20).write(to: URL(fileURLWithPath: image))
        for backEnd in Self.backEnds {
            print("a disk with \(backEnd), RAM in a memfd, a guest that only queues and waits")
            print("(medians of \(repetitions)):")
            var own: [Work: [Double]] = [:], other: [Work: [Double]] = [:]
            var order: [Work] = []
            for _ in 0..<repetitions {
                try add(try once([vmm], [], guest, image, backEnd), to: &own, order: &order)
                guard let qemu else { continue }
                // Its virtio-mmio is the one before virtio 1 unless it is told otherwise.
                let modern = ["-global", "virtio-mmio.force-legacy=false"]
                try add(try once(qemu, modern + Self.sharedMemory, guest, image, backEnd), to: &other, order: &order)
            }
            for work in order { show(work, own[work] ?? [], other[work]) }
        }
    }

    private func add(
        _ rates: [(Work, Double)], to samples: inout [Work: [Double]], order: inout [Work]
    ) throws {
        for (work, rate) in rates {
            samples[work, default: []].append(rate)
            if !order.contains(work) { order.append(work) }
        }
    }

    private func show(_ work: Work, _ own: [Double], _ other: [Double]?) {
        let rate = Summary(own).median
        var text = "  \(work.operation) of \(work.bytes >> 10) KiB, \(work.depth) at a time"
            .padding(toLength: 36, withPad: " ", startingAt: 0)
        text +=
            work.isLatency
            ? String(format: "%8.1f us a request", 1e6 / rate)
            : String(format: "%8.0f requests a second, %6.0f MB/s", rate, rate * Double(work.bytes) / 1e6)
        if let other {
            let theirs = Summary(other).median
            text += String(
                format: work.isLatency ? "; QEMU %8.1f us, %.2f times as fast" : "; QEMU %8.0f, %.2f times as many",
                work.isLatency ? 1e6 / theirs : theirs, rate / theirs)
        }
        print(text)
    }

    /// - Returns: requests a second, by work.
    private func once(
        _ vmm: [String], _ options: [String], _ guest: String, _ image: String, _ backEnd: String
    ) throws -> [(Work, Double)] {
        let session = try Session(
            arguments: vmm + options + [
                "-machine", "virt", "-m", "64M", "-bios", "none", "-kernel", guest, "-nodefaults", "-nographic",
                "-serial", "stdio", "-monitor", "none",
                "-drive", "file=\(image),format=raw,if=none,id=hd,\(backEnd)", "-device", "virtio-blk-device,drive=hd",
            ], socketPath: "", directory: directory.path)
        var rates: [(Work, Double)] = []
        var isAtEnd = false
        var problem: String?
        session.console.onLine = { line in
            guard let start = line.range(of: Self.serials)?.upperBound else {
                if line.contains("FAIL") { problem = problem ?? line }
                return
            }
            let words = line[start...].split(separator: " ")
            if words == ["end"] {
                isAtEnd = true
            } else if words.count == 5, let bytes = Int(words[1]), let depth = Int(words[2]),
                let count = Double(words[3].dropFirst("requests=".count)),
                let ticks = Double(words[4].dropFirst("ticks=".count))
            {
                rates.append((Work(operation: String(words[0]), bytes: bytes, depth: depth), count * 1e7 / ticks))
            } else {
                problem = problem ?? line
            }
        }
        try session.wait(for: "end of the guest's work on its disk", seconds: 120) {
            if let problem { throw Failure("the guest says: \(problem)") }
            return isAtEnd
        }
        return rates
    }
}
