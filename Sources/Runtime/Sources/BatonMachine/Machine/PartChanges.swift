import BatonBase
import Glibc

/// What has changed of a part in the old VMM since the new one, this process, was
/// executed.
public struct PartChanges {
    /// What the part hands over; nil when that is as it was when this process was
    /// executed, or `isGone`.
    public let state: StateReader?
    /// Whether it hands nothing over any more.
    public let isGone: Bool
    private let fds: [PreservedFDs.Key: Int32]
    private let gone: Set<PreservedFDs.Key>

    package init(
        state: StateReader?, isGone: Bool, fds: [PreservedFDs.Key: Int32], gone: Set<PreservedFDs.Key>
    ) {
        (self.state, self.isGone, self.fds, self.gone) = (state, isGone, fds, gone)
    }

    /// What has become of a descriptor.
    public enum Descriptor {
        /// It is the one that this process has inherited, or there was none and is none.
        case unchanged
        /// There is none any more. What was inherited is to be closed.
        case gone
        /// There is another. Owned by the part from now on.
        case new(Int32)
    }

    /// Descriptors that are new, or others than were inherited.
    package var newDescriptors: [(key: PreservedFDs.Key, fd: Int32)] { fds.map { ($0.key, $0.value) } }
    /// Names of descriptors that are there no more.
    package var goneDescriptors: Set<PreservedFDs.Key> { gone }

    /// Closes what has come, for a part that takes nothing over.
    public func discard() {
        for fd in fds.values { close(fd) }
    }

    public func descriptor(_ name: String, id: Int = 0) -> Descriptor {
        let key = PreservedFDs.Key(name: name, id: id)
        if let fd = fds[key] { return .new(fd) }
        return gone.contains(key) ? .gone : .unchanged
    }
}
