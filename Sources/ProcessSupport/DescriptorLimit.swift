import Foundation
import HarnessSystem

/// How many descriptors this process may have.
public enum DescriptorLimit {
    /// Raises the usual 1024 to a few thousand, once: a VM that a test makes in its own process stays to the end with
    /// the descriptors of its loop, as the VMM's does.
    public static func raise() { _ = raised }
    private static let raised: Void = { _ = harness_allow_descriptors(16384) }()
}
