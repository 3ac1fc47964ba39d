import ProcessSupport

/// strace, which some tests read a VMM's system calls from.
public enum SystemCallTrace {
    /// Whether it is installed, and this process may trace others.
    public static let isAvailable = (try? ChildProcess.run(["strace", "-o", "/dev/null", "true"])) != nil
}
