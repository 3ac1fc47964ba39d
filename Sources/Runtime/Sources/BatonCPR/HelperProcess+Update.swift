import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What of a helper crosses an update: its directory, and the socket to its guard, as `helper/ID`.
extension HelperProcess {
    func takePart() {
        guard let handover = vm.handover else { return }
        handover.onChange(of: part, fds: fdPrefix) { [unowned self] changes throws(VMMError) in try takeOver(changes) }
        handover.takePart(
            handOver: { [unowned self, unowned handover] () throws(VMMError) in handOver(to: handover) },
            failed: { [unowned self, unowned handover] in handover.fds.delete(fdName) },
            committed: { [unowned self] in commit() })
    }

    private func handOver(to handover: any MachineHandover) {
        if socket >= 0 { handover.fds.replace(fdName, socket, serial: serial) }
        var state = StateWriter()
        state.put("directory", directory)
        state.put("guard", UInt64(guardPID))
        state.put("pid", UInt64(pid))
        state.put("failures", failures)
        handover.handOver(part, state)
    }

    private func read(_ state: StateReader) throws(VMMError) {
        directory = try state.string("directory")
        guardPID = pid_t(try state.unsigned("guard", in: 0...UInt64(pid_t.max)))
        pid = pid_t(try state.unsigned("pid", in: 0...UInt64(pid_t.max)))
        failures = try state.unsigned("failures", in: 0...HelperProcess.mostFailures + 1)
    }

    func inherit(_ state: StateReader) throws(VMMError) {
        try read(state)
        try state.finish()
        guard let fd = vm.handover?.fds.find(fdName) else { return }
        vm.handover?.fds.delete(fdName)
        guard DescriptorKind.isPacketConnection(fd) else {
            throw VMMError("\(program.purpose): what was inherited of '\(name)' is not a socket")
        }
        socket = fd
    }

    private func takeOver(_ changes: PartChanges) throws(VMMError) {
        switch changes.descriptor(fdName) {
        case .unchanged: break
        case .gone: forget()
        case .new(let fd):
            forget()
            (socket, serial) = (fd, PreservedFDs.newSerial())
        }
        if let state = changes.state { try read(state) }
    }

    private func commit() {
        guard !isCommitted else { return }
        isCommitted = true
        startedAt = EventLoop.now
        do throws(VMMError) { try listen() } catch { Report.warning("\(program.purpose): \(error.message)") }
        // It had died, and the old VMM was to start it again.
        if socket < 0, failures <= HelperProcess.mostFailures { startLater(Limit.firstDelay) }
    }
}

/// The end of the VM.
extension HelperProcess {
    /// Waits until it has ended.
    func awaitEnd(until deadline: Int64) {
        while socket >= 0, FD.awaitInput(socket, until: deadline) {
            if case .ended = receive() { return forget() }
        }
        guard socket >= 0 else { return }
        Report.warning("\(program.purpose): '\(name)' has not ended yet")
        forget()
    }

    /// Ends all helpers of a VM, and waits for that: whoever uses an image next finds it closed. Those of a guest that is
    /// still another process' are left alone.
    fileprivate static func endAll(_ all: [HelperProcess]) {
        let helpers = all.filter(\.isCommitted)
        for helper in helpers { helper.end() }
        let deadline = EventLoop.now + Limit.end
        for helper in helpers { helper.awaitEnd(until: deadline) }
    }

    /// Once every helper stands: closes what the new command line has no helper for. It ends when the old VMM does.
    fileprivate static func closeUnclaimed(_ handover: any MachineHandover) {
        for entry in handover.fds.entries where entry.name.hasPrefix("helper/") {
            Report.warning("\(entry.name): the command line has no use for it any more; it is ended")
            handover.fds.delete(entry.name, id: entry.id)
            close(entry.fd)
        }
    }
}

/// The helpers of a machine.
final class HelperProcesses: MachineParts {
    var inOrder: [HelperProcess] = []
}

extension VirtualMachine {
    /// Ends the programs that were started for this VM, in some seconds at most. For the end of a VM that has its guest.
    public func endHelpers() { HelperProcess.endAll(parts(HelperProcesses.self).inOrder) }

    /// Once every back end stands: ends, with the old VMM, the helpers that nobody has use for.
    public func closeUnclaimedHelpers() { handover.map { HelperProcess.closeUnclaimed($0) } }
}

extension CprController {
    /// A child of this process, or of what it was before an update, is about to end and to be waited for.
    func childEnds(_ pid: pid_t) {
        guard pid > 0 else { return }
        endingChildren.add(pid)
        endingChildren.reap(on: vm.loop)
    }
}
