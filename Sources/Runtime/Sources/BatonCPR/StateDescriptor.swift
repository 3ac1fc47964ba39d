import BatonBase
import CBaton
import Glibc

/// The memfd of the CPR state.
extension CprState {
    /// Writes the state to a new memfd, which nobody can change.
    public func writeMemfd() throws(VMMError) -> OwnedFD {
        let raw = cbaton_memfd_create("cpr-state", CBATON_MFD_ALLOW_SEALING)
        guard raw >= 0 else { throw .system("failed to create memfd 'cpr-state'") }
        let fd = OwnedFD(adopting: raw)
        try FD.writeAll(fd.raw, encoded(), to: "the CPR state")
        guard cbaton_seal_contents(fd.raw) == 0 else { throw .system("failed to seal memfd 'cpr-state'") }
        return fd
    }

    /// The state's descriptor, for a process whose environment does not name it:
    /// the command that executed it may have cleared that (`env -i`).
    /// - Throws: when there are several.
    static func findDescriptor() throws(VMMError) -> Int32? {
        var found: Int32?
        for fd in openDescriptors() where isState(fd) {
            if let found {
                throw VMMError("cannot use the CPR state: fd \(found) and fd \(fd) are one each")
            }
            found = fd
        }
        return found
    }

    /// Guest memory cannot pass for a state: it is not sealed against writes.
    private static func isState(_ fd: Int32) -> Bool {
        guard cbaton_is_sealed(fd) != 0 else { return false }
        let magic = SectionContainer.Kind.cprState.magic
        var bytes = [UInt8](repeating: 0, count: magic.count)
        return pread(fd, &bytes, bytes.count, 0) == bytes.count && bytes == magic
    }

    private static func openDescriptors() -> [Int32] {
        FD.allOpen()?.filter { $0 > 2 } ?? Array(3..<Int32(max(3, min(sysconf(Int32(_SC_OPEN_MAX)), 65536))))
    }
}
