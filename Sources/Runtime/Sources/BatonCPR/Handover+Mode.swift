import BatonBase

extension Handover {
    /// Has `argv` executed with everything that is preserved now: the whole `exec`
    /// of a mode that keeps RAM and descriptors in place.
    /// - Throws: why it cannot be; nothing is executed then.
    public static func exec(_ argv: [String], mode: any CprMode, cpr: CprController) throws(VMMError) {
        let state = cpr.stateForExec(mode: mode)
        try exec(argv, state: state, fds: state.ram.map(\.fd) + state.fds.map(\.fd))
    }

    /// Has everything that is preserved now handed over to the VMM at the other end of
    /// a socket: the whole `connect` of a mode that keeps RAM and descriptors in place.
    /// - Parameter fd: as `connect(_:state:)` has it; the runtime's from then on.
    public static func connect(_ fd: Int32, mode: any CprMode, cpr: CprController) throws(VMMError) {
        try connect(fd, state: cpr.stateForExec(mode: mode))
    }
}
