import BatonBase

extension Handover {
    /// Executes `argv` with everything that is preserved now: the whole `exec`
    /// of a mode that keeps RAM and descriptors in place.
    /// - Throws: why the exec failed.
    public static func exec(_ argv: [String], mode: any CprMode, cpr: CprController) throws(VMMError) {
        let state = cpr.stateForExec(mode: mode)
        try exec(argv, state: state, fds: state.ram.map(\.fd) + state.fds.map(\.fd))
    }
}
