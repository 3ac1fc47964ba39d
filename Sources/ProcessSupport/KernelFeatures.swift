import HarnessSystem

/// What this kernel has.
public enum KernelFeatures {
    /// The version of Landlock; 0 when there is none, or it is switched off.
    public static var landlock: Int { max(0, Int(harness_landlock_version())) }
}
