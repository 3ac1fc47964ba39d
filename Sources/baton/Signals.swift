import BatonRuntime
import CBaton
import Glibc

/// Ends the VMM in order on SIGINT, SIGTERM and SIGHUP.
///
/// A handler that writes to a pipe. While the VMM runs none of them is blocked;
/// over an exec all are (`cbaton_execute_beside`), so that one that comes before the new
/// VMM has its handlers ends that in order, and with it the guest, instead of
/// looking like a new VMM that crashed.
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
        vm.signalFD = reader
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
        cbaton_accept_stop_signals()
        // Ignored, as whoever started us may have left it, it would take the
        // exit status of every child from whoever waits for it.
        var standard = sigaction()
        standard.__sigaction_handler.sa_handler = SIG_DFL
        sigaction(SIGCHLD, &standard, nil)
        var ignore = sigaction()
        ignore.__sigaction_handler.sa_handler = SIG_IGN
        sigaction(SIGPIPE, &ignore, nil)
        // A file larger than RLIMIT_FSIZE is an error of the write, not the end of the VM.
        sigaction(SIGXFSZ, &ignore, nil)
    }
}
