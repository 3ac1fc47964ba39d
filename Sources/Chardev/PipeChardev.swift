import BatonRuntime
import Glibc

/// `pipe`: two FIFOs, `PATH.in` and `PATH.out`, or one file `PATH` for both ways. Whoever is at the other end may come and go.
final class PipeChardev: KeptStreamChardev {
    init(id: String, path: String, loop: EventLoop, held: Bool) {
        super.init(id: id, backend: "pipe", place: path, loop: loop, held: held)
    }

    /// - Throws: the system's error when there are neither the two files nor the one.
    func open() throws(VMMError) {
        // With both directions a FIFO has no end, and needs nobody at the other one.
        let kinds: [FileKind] = [.fifo, .characterDevice]
        if access("\(place).in", F_OK) == 0, access("\(place).out", F_OK) == 0 {
            let input = try FD.openFile("\(place).in", O_RDWR, kinds: kinds)
            let output = try FD.openFile("\(place).out", O_RDWR, kinds: kinds)
            return try connect(input: input.release(), output: output.release())
        }
        let both = try FD.openFile(place, O_RDWR, kinds: kinds).release()
        try connect(input: both, output: both)
    }
}
