import Glibc

/// How a process has ended, as waitpid(2) tells it.
struct WaitStatus {
    let raw: Int32

    private var signal: Int32 { raw & 0x7f }
    var isSignal: Bool { signal != 0 }

    /// To follow "ended": `with status 1`, `by signal 9 (Killed)`.
    var text: String {
        isSignal ? "by signal \(signal) (\(String(cString: strsignal(signal))))" : "with status \(raw >> 8 & 0xff)"
    }
}
