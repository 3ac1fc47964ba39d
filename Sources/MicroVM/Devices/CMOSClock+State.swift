import BatonRuntime

/// The clock's part of a checkpoint. The time is an offset to the wall clock, which goes on meanwhile.
extension CMOSClock {
    /// Seconds beyond those of any year that the registers can hold.
    private static let farthest: Int64 = 1 << 41

    public func save(to writer: inout StateWriter) {
        writer.put("index", UInt64(index))
        writer.put("memory", bytes: memory)
        writer.put("happened", UInt64(happened.rawValue))
        writer.put("offset-seconds", UInt64(bitPattern: offsetSeconds))
        writer.put("offset-nanoseconds", UInt64(offsetNanoseconds))
        writer.put("settled-second", UInt64(bitPattern: settledSecond))
        writer.put("settled-period", settledPeriod)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        func seconds(_ name: String) throws(VMMError) -> Int64 {
            let value = Int64(bitPattern: try reader.unsigned(name))
            guard (-CMOSClock.farthest...CMOSClock.farthest).contains(value) else {
                throw VMMError("field '\(name)' of section '\(reader.section)' is \(value) s")
            }
            return value
        }
        let newIndex = UInt8(try reader.unsigned("index", in: 0...0x7f))
        let newMemory = try reader.bytes("memory", count: CMOSClock.memorySize...CMOSClock.memorySize)
        let newHappened = UInt8(try reader.unsigned("happened", in: 0...0xff))
        let newOffset = try seconds("offset-seconds")
        let newNanoseconds = try reader.unsigned(
            "offset-nanoseconds", in: 0...UInt64(CMOSClock.nanosecondsPerSecond - 1))
        let newSecond = try seconds("settled-second")
        let newPeriod = try reader.unsigned("settled-period")
        try reader.finish()
        guard newHappened & ~CMOSInterrupts.all.rawValue == 0 else {
            throw VMMError("field 'happened' of section '\(reader.section)' is \(newHappened)")
        }
        // Bits that these registers never have.
        let control = newMemory[CMOSIndex.b]
        guard newMemory[CMOSIndex.a] & 0x80 == 0, newMemory[CMOSIndex.c] == 0, newMemory[CMOSIndex.d] == 0x80,
            control & CMOSControl.set == 0 || control & CMOSInterrupts.updateEnded.rawValue == 0
        else { throw VMMError("field 'memory' of section '\(reader.section)' has impossible control registers") }
        return { [self] in
            index = newIndex
            memory = newMemory
            happened = CMOSInterrupts(rawValue: newHappened)
            offsetSeconds = newOffset
            offsetNanoseconds = Int64(newNanoseconds)
            settledSecond = newSecond
            settledPeriod = newPeriod
            updateLine()
        }
    }
}
