import BatonRuntime

/// What the monitors say about themselves.
public enum MonitorVersion {
    /// The QEMU release whose QMP schema the commands follow.
    public static let qemu: (major: Int, minor: Int, micro: Int) = (10, 0, 0)
    /// The program, as `query-version` and `-version` name it.
    public static var package: String { "baton-\(BatonVersion.text)" }

    static var json: JSON {
        [
            "qemu": ["major": JSON(qemu.major), "minor": JSON(qemu.minor), "micro": JSON(qemu.micro)],
            "package": .string(package),
        ]
    }
}
