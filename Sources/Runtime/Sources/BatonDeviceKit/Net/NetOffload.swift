/// A network card whose queues somebody else serves: pairs of a queue to and
/// one from the driver. The queue by which a driver chooses how many pairs it
/// uses is the core's.
public protocol NetOffload: VirtioOffload {
    /// The driver uses the first `count` pairs from now on. It is one at the
    /// beginning and after `stop`. Also called while the VM is paused, and
    /// when a checkpoint's state is taken over, then before `resume`.
    func usePairs(_ count: Int)
}
