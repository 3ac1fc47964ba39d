import BatonRuntime
import Glibc

/// A back end whose descriptors are opened once, at the start, and kept over updates: a pair of FIFOs, a UDP socket.
class KeptStreamChardev: StreamChardev {
    /// What it is at the other end, which must be the same in the process before.
    let place: String

    init(id: String, backend: String, place: String, loop: EventLoop, held: Bool) {
        self.place = place
        super.init(id: id, backend: backend, loop: loop, held: held)
    }

    override var filename: String { "\(backend):\(place)" }
    override var survivesUpdate: Bool { true }

    override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr, inputFD >= 0 else { return }
        cpr.save(inputFD, of: self, as: "input")
        if outputFD != inputFD { cpr.save(outputFD, of: self, as: "output") }
        cpr.handOver(self) {
            $0.put("place", place)
            $0.put("unsent", bytes: unsentBytes)
        }
    }

    /// Goes on with the descriptors of the process before.
    func inherit(_ heritage: ChardevHeritage) throws(VMMError) {
        let before = try heritage.state.string("place")
        guard before == place else {
            throw VMMError(
                "chardev '\(id)' is at '\(before)' in the CPR state, but at '\(place)' on the command line",
                hint: "With reopen-on-cpr=on it is opened anew.")
        }
        guard let input = heritage.claim("input") else { throw heritage.mismatch("there") }
        let output = heritage.claim("output") ?? input
        try connect(input: input, output: output, unsent: try heritage.bytes("unsent"), inherited: true)
    }

    override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("backend")
        _ = try state.string("place")
        takeOver(unsent: try state.bytes("unsent"))
    }

    /// There is no end: who has gone may come back.
    override func peerClosed() {}
    override func outputFailed() {}
}
