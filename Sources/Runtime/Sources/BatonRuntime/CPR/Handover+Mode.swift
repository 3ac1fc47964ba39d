extension Handover {
    /// Executes `argv` with everything that is preserved now, and a lifeboat if
    /// the update asks for one: the whole `exec` of a mode that keeps RAM and
    /// descriptors in place.
    /// - Throws: why the guest is still ours.
    public static func exec(_ argv: [String], mode: any CprMode, cpr: CprController) throws(VMMError) {
        let state = cpr.stateForExec(mode: mode)
        var fds = state.ram.map(\.fd) + state.fds.map(\.fd)
        if let checkpoint = state.checkpointFD { fds.append(checkpoint) }
        try exec(argv, state: state, fds: fds, startLimit: cpr.startLimit)
    }
}
