import BatonRuntime

/// The UART's part of a checkpoint.
extension SerialUART {
    public func save(to writer: inout StateWriter) {
        writer.put("ier", UInt64(interruptEnable))
        writer.put("fcr", UInt64(fifoControl))
        writer.put("lcr", UInt64(lineControl))
        writer.put("mcr", UInt64(modemControl))
        writer.put("scr", UInt64(scratch))
        writer.put("divisor", UInt64(divisor))
        writer.put("line-errors", UInt64(lineErrors))
        writer.put("modem-deltas", UInt64(modemDeltas))
        writer.put("transmit-interrupt", transmitInterrupt)
        writer.put("blocked", isBlocked)
        writer.put("input", bytes: input)
        writer.put("output", bytes: output)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let ier = UInt8(try reader.unsigned("ier", in: 0...0x0f))
        let fcr = UInt8(try reader.unsigned("fcr", in: 0...0xff))
        let lcr = UInt8(try reader.unsigned("lcr", in: 0...0xff))
        let mcr = UInt8(try reader.unsigned("mcr", in: 0...0x1f))
        let scr = UInt8(try reader.unsigned("scr", in: 0...0xff))
        let newDivisor = UInt16(try reader.unsigned("divisor", in: 0...0xffff))
        let errors = UInt8(try reader.unsigned("line-errors", in: 0...0x1f))
        let deltas = UInt8(try reader.unsigned("modem-deltas", in: 0...0x0f))
        let pendingTransmit = try reader.bool("transmit-interrupt")
        let blocked = try reader.bool("blocked")
        guard fcr & ~0xc9 == 0 else {
            throw VMMError("field 'fcr' of section '\(reader.section)' is \(fcr)")
        }
        let newInput = try reader.bytes("input", count: 0...(fcr & 1 != 0 ? SerialUART.fifoDepth : 1))
        let newOutput = try reader.bytes("output", count: 0...SerialUART.batch + SerialUART.fifoDepth)
        try reader.finish()
        return { [self] in
            interruptEnable = ier
            fifoControl = fcr
            lineControl = lcr
            modemControl = mcr
            scratch = scr
            divisor = newDivisor
            lineErrors = errors
            modemDeltas = deltas
            transmitInterrupt = pendingTransmit
            isBlocked = blocked
            input = newInput
            output = newOutput
            update()
        }
    }
}
