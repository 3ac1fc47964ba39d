import BatonBase

extension Handover {
    /// Has `argv` executed with everything that is preserved now: the whole `exec`
    /// of a mode that keeps RAM and descriptors in place.
    /// - Throws: why it cannot be; nothing is executed then.
    public static func exec(_ argv: [String], mode: any CprMode, cpr: CprController) throws(VMMError) {
        let state = cpr.stateForExec(mode: mode)
        try exec(argv, state: state, fds: state.ram.map(\.fd) + state.fds.map(\.fd))
    }
}
