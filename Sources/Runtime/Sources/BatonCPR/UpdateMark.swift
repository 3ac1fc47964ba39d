import BatonBase
import CBaton
import Glibc

/// Tells a process that it was started by the command of an update, also when
/// that has cleared its environment and closed its descriptors, as `sudo` and
/// `su` do.
///
/// What a VMM executes for an update has a number in its timer slack (prctl(2)).
/// Everything that is started in turn inherits that, whatever becomes of its
/// parents, session, user and environment; only what a service manager starts on
/// somebody's behalf does not. A VMM holds a socket with its number as the name
/// for as long as it has its guest: the old VMM in the child in which it goes on, and
/// the new one. So a new VMM that has a number but no
/// inherited state can see that it is a trial or a successor which has lost its
/// state, and that the guest is still somebody else's.
package final class UpdateMark {
    /// Nanoseconds that the number is added to: a slack as most processes have.
    private static let base: UInt = 50_000
    /// At most a quarter of a millisecond, which no command notices.
    private static let count: UInt = 1 << 18
    /// What a mark's number may be.
    static let numbers: ClosedRange<UInt64> = 1...UInt64(count - 1)

    let number: UInt
    /// Held, and handed over to the next process of the VM; nothing else is done with it.
    private let socket: OwnedFD

    var fd: Int32 { socket.raw }

    /// Takes over the mark of the process before.
    init(inherited: CprState.Mark) {
        number = inherited.number
        socket = OwnedFD(adopting: inherited.fd)
    }

    /// - Returns: nil where there can be no such socket; updates are unmarked then.
    init?() {
        for _ in 0..<100 {
            var random: UInt32 = 0
            guard cbaton_getrandom(&random, 4) == 4 else { return nil }
            let number = 1 + UInt(random) % (UpdateMark.count - 1)
            guard let fd = UpdateMark.makeSocket() else { return nil }
            if UpdateMark.withAddress(number, { bind(fd.raw, $0, $1) }) == 0 {
                // It has a name, and is for nothing else: who has broken out of a sandboxed guest sends nothing by it.
                shutdown(fd.raw, Int32(SHUT_WR))
                self.number = number
                socket = fd
                return
            }
            guard errno == EADDRINUSE else { return nil }
        }
        return nil
    }

    /// For what is executed, in nanoseconds.
    var timerSlack: UInt { UpdateMark.base + number }

    /// - Throws: when this process was started by the command of an update, and
    ///   the VMM that executed that has its guest.
    static func checkUnmarked() throws(VMMError) {
        let slack = UInt(cbaton_timer_slack())
        guard (base + 1..<base + count).contains(slack), isTaken(slack - base) else { return }
        throw VMMError(
            "the command of an update has started this VMM, which has not inherited the state of its guest",
            hint: "The command must not close file descriptors, as sudo does: use setpriv, or sudo's option -C with "
                + "closefrom_override.")
    }

    /// Whether a socket is such a one, by its name.
    package static func isMark(_ fd: Int32) -> Bool {
        DescriptorKind.boundAddress(of: fd)?.dropFirst(3).starts(with: "baton-update/".utf8) == true
    }

    private static func isTaken(_ number: UInt) -> Bool {
        if let fd = makeSocket() { return withAddress(number, { connect(fd.raw, $0, $1) }) == 0 }
        // A sandbox has streams only, whose names are others than those of datagrams. The kernel lists all (proc_net(5)).
        guard let list = try? FD.open("/proc/self/net/unix", O_RDONLY),
            let bytes = try? FD.readAll(list.raw, limit: 256 << 20, from: "/proc/self/net/unix")
        else { return false }
        let name = Array(" @baton-update/\(number)".utf8)
        return bytes.split(separator: UInt8(ascii: "\n")).contains { $0.suffix(name.count).elementsEqual(name) }
    }

    private static func makeSocket() -> OwnedFD? {
        let fd = Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        return fd < 0 ? nil : OwnedFD(adopting: fd)
    }

    /// The abstract name `baton-update/NUMBER`, which belongs to no directory.
    private static func withAddress(_ number: UInt, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let name = [0] + Array("baton-update/\(number)".utf8)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
        let length = socklen_t(MemoryLayout<sa_family_t>.size + name.count)
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, length) }
        }
    }
}

extension CprController {
    /// For a new process that is to run a guest of its own.
    /// - Throws: when it was to take over another's, and has lost the state.
    public static func checkIsNoSuccessor() throws(VMMError) { try UpdateMark.checkUnmarked() }
}
