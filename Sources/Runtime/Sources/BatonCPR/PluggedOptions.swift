/// What clients have plugged into a VM since its start, as options of a command line. Main thread only.
public protocol PluggedOptions: AnyObject {
    /// `-device DRIVER,…` and so on, in the order in which they are needed.
    var pluggedOptions: [String] { get }
    /// Those of another VM that this one has not.
    func lacking(of options: [String]) -> [String]
}
