import BatonRuntime

extension VirtQueue {
    func save(to writer: inout StateWriter) {
        writer.put(
            "queue\(index)",
            [
                UInt64(size), ready ? 1 : 0, descriptorAddress, driverAddress, deviceAddress,
                UInt64(nextAvailable), UInt64(nextUsed), UInt64(signalledUsed), signalledIsValid ? 1 : 0,
            ])
    }

    /// A checked state, ready to be applied.
    struct Loaded {
        var fields: [UInt64]
        var rings: Rings?
    }

    /// Reads the queue's state and translates its addresses anew, without a
    /// change to the queue or to guest RAM.
    /// - Parameter unfinished: chains that were taken and not given back.
    func loaded(from reader: StateReader, status: UInt8, unfinished: Int) throws(VMMError) -> Loaded {
        let name = "queue\(index)"
        let fields = try reader.array(name, count: 9...9)
        func refuse(_ what: String) -> VMMError {
            VMMError("field '\(name)' of section '\(reader.section)': \(what)")
        }
        guard fields[0] <= 0xffff, fields[1] <= 1, fields[8] <= 1, fields[5...7].allSatisfy({ $0 <= 0xffff }) else {
            throw refuse("a value is out of range")
        }
        // What was taken was given back, or the device knows it.
        guard unfinished <= Int(fields[0]), (fields[5] &- fields[6]) & 0xffff == UInt64(unfinished) else {
            throw refuse(
                "available index \(fields[5]) does not match used index \(fields[6])"
                    + (unfinished > 0 ? " and \(unfinished) unfinished requests" : ""))
        }
        guard fields[1] == 1 || unfinished == 0 else {
            throw refuse("unfinished requests of a queue that is not in use")
        }
        guard fields[1] == 1 else { return Loaded(fields: fields, rings: nil) }
        guard status & VirtioStatus.featuresOK != 0 else { throw refuse("ready before FEATURES_OK") }
        do {
            let rings = try locate(
                size: UInt16(fields[0]), descriptors: fields[2], driver: fields[3], device: fields[4])
            return Loaded(fields: fields, rings: rings)
        } catch {
            throw refuse(error.message)
        }
    }

    func apply(_ state: Loaded, features: UInt64) {
        disable()
        let fields = state.fields
        size = UInt16(truncatingIfNeeded: fields[0])
        descriptorAddress = fields[2]
        driverAddress = fields[3]
        deviceAddress = fields[4]
        nextAvailable = UInt16(truncatingIfNeeded: fields[5])
        nextUsed = UInt16(truncatingIfNeeded: fields[6])
        signalledUsed = UInt16(truncatingIfNeeded: fields[7])
        signalledIsValid = fields[8] == 1
        if let rings = state.rings { enable(rings, features: features) }
    }
}
