import BatonRuntime
import CBaton
import Glibc

/// Ends the VMM in order on SIGINT, SIGTERM and SIGHUP.
///
/// A handler that writes to a pipe, and no blocked mask: a mask would be
/// inherited by whatever cpr-exec executes.
enum Signals {
    nonisolated(unsafe) private static var pipeWriter: Int32 = -1

    static func install(_ vm: VirtualMachine) throws(VMMError) {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { throw .system("Could not create a pipe") }
        for fd in ends {
            try FD.setCloseOnExec(fd, true)
            try FD.setNonBlocking(fd, true)
        }
        pipeWriter = ends[1]
        let reader = ends[0]
        vm.takeSignals = { [unowned vm] in
            var number: UInt8 = 0
            guard read(reader, &number, 1) == 1 else { return }
            Report.info("terminating on signal \(number)")
            vm.requestQuit(cause: "host-signal")
        }
        try vm.loop.watch(reader, .readable) { [unowned vm] _ in vm.takeSignals() }
        for number in [SIGINT, SIGTERM, SIGHUP] {
            var action = sigaction()
            action.__sigaction_handler.sa_handler = { number in
                let saved = errno
                var byte = UInt8(truncatingIfNeeded: number)
                _ = write(Signals.pipeWriter, &byte, 1)
                errno = saved
            }
            // A signal that was ignored when we started stays ignored (nohup).
            if number == SIGHUP && cbaton_is_ignored(number) != 0 { continue }
            sigaction(number, &action, nil)
        }
        var ignore = sigaction()
        ignore.__sigaction_handler.sa_handler = SIG_IGN
        sigaction(SIGPIPE, &ignore, nil)
        // A file larger than RLIMIT_FSIZE is an error of the write, not the end of the VM.
        sigaction(SIGXFSZ, &ignore, nil)
    }
}
