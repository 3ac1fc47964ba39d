/// Baton's own version, by the rules of semver.org: the last number for fixes, the one before it for what is
/// added, the first for what no longer works as it did. CHANGELOG.md says what each brought.
public enum BatonVersion {
    /// The version that this is, or that it leads to.
    public static let number = "0.9.0"
    /// The git revision that the executable was built from, abbreviated; empty when it was built elsewhere.
    /// The executable sets it before it does anything else: the runtime is not built again for a commit.
    nonisolated(unsafe) public static var revision = ""

    /// Version and revision: `0.9.0+g0123456789ab`, or `0.9.0`. Goes into checkpoints and the history of updates.
    public static var text: String { revision.isEmpty ? number : "\(number)+g\(revision)" }
}
