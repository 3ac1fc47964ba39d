import BatonRuntime

/// What the monitors say about themselves.
public enum MonitorVersion {
    /// The QEMU release whose QMP schema the commands follow.
    public static let qemu: (major: Int, minor: Int, micro: Int) = (10, 0, 0)
    /// This program's own version.
    public static let version = "0.1.0"
    public static let package = "baton-\(version)"

    static var json: JSON {
        [
            "qemu": ["major": JSON(qemu.major), "minor": JSON(qemu.minor), "micro": JSON(qemu.micro)],
            "package": .string(package),
        ]
    }
}
