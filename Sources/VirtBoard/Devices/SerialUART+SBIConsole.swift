import InstructionSets
import Serial

/// The SBI's debug console is the first serial port.
extension SerialUART: SBIConsole {
    public func write(_ bytes: UnsafeRawBufferPointer) { send(bytes) }
    public func read(into buffer: UnsafeMutableRawBufferPointer) -> Int { take(into: buffer) }
}
