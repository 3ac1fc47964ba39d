import BatonRuntime
import CBaton
import Glibc

/// `script=` and `downscript=`: programs that configure an interface.
enum NetworkScript {
    /// Runs one to its end.
    /// - Throws: QEMU's error when it does not end with success.
    static func run(_ path: String, interface: String) throws(VMMError) {
        let arguments = CStringArray([path, interface])
        var pid: pid_t = 0
        let code = withExtendedLifetime(arguments) { cbaton_spawn(arguments.pointers, nil, 0, 2, &pid) }
        guard code == 0 else { throw .system("could not launch network script '\(path)'", errno: code) }
        var status: Int32 = 0
        guard retryingInterrupts({ waitpid(pid, &status, 0) }) == pid else {
            throw .system("could not wait for network script '\(path)'")
        }
        guard status == 0 else { throw VMMError("network script \(path) failed with status \(status)") }
    }
}
