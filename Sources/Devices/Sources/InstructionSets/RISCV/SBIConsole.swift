/// Where the SBI's debug console (DBCN) reads and writes: the board connects
/// it to the first serial port's chardev.
public protocol SBIConsole: AnyObject {
    /// All of `bytes` is taken or dropped; borrowed for the call.
    func write(_ bytes: UnsafeRawBufferPointer)
    /// Fills `buffer` with input that has arrived, without waiting.
    /// - Returns: bytes stored, 0 when there is none.
    func read(into buffer: UnsafeMutableRawBufferPointer) -> Int
}
