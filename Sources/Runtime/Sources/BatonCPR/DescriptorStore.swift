/// Keeps descriptors of a service while none of its processes runs, as a service manager does.
/// Main thread only.
public protocol DescriptorStore: AnyObject {
    /// Has a descriptor kept under a name, beside others that have it. Borrowed.
    /// - Returns: whether it was given to the store.
    func store(_ name: String, _ fd: Int32) -> Bool
    /// Has nothing kept under a name any more. It may take a moment.
    func remove(_ name: String)
    /// What the store has given back to this process under a name, each time it is asked. Owned by the store.
    func find(_ name: String) -> [Int32]
}
