import BatonBase

/// What is known about RAM whose descriptor outlives an exec: enough to map it
/// again, and to tell when a new command line does not match.
public struct RAMRecord {
    public var name: String
    public var usedLength: Int
    public var maxLength: Int
    public var alignment: Int
    /// The memory's descriptor. Owned by the block once it has been taken over.
    public var fd: Int32

    public init(name: String, usedLength: Int, maxLength: Int, alignment: Int, fd: Int32) {
        self.name = name
        self.usedLength = usedLength
        self.maxLength = maxLength
        self.alignment = alignment
        self.fd = fd
    }
}

/// The RAM part of the CPR state: blocks by name. A block is recorded when its
/// memory is made, found after an exec, and forgotten when it is freed.
public final class RAMRecords {
    /// Records of blocks that exist in this process.
    public private(set) var current: [RAMRecord] = []
    private var currentNames: Set<String> = []
    /// Records handed over by the process before, nil where they have been claimed.
    private var handedOver: [RAMRecord?] = []
    private var places: [String: Int] = [:]
    /// Records handed over by the process before, not yet claimed.
    public var inherited: [RAMRecord] { handedOver.compactMap { $0 } }

    /// Why a process must not go on that has not claimed everything which the one before handed over; nil when it
    /// has, or there was none.
    public var missing: VMMError? {
        inherited.first.map {
            VMMError(
                "the CPR state has the RAM block '\($0.name)' (\($0.usedLength) bytes), which this command line lacks",
                hint: "Start the new VMM with the memory and device arguments of the old one.")
        }
    }

    init() {}

    /// - Parameter records: with names that are unique.
    package func inherit(_ records: [RAMRecord]) {
        handedOver = records
        places = [:]
        for (index, record) in records.enumerated() { places[record.name] = index }
    }

    /// Claims the memory that the process before had under this name.
    /// - Returns: nil when there was no process before, or it had no such block
    ///   (a device that the new command line adds).
    /// - Throws: an error when the new command line asks for other lengths or
    ///   another alignment.
    public func find(_ request: RAMRequest) throws(VMMError) -> RAMRecord? {
        guard let index = places[request.name], let record = handedOver[index] else { return nil }
        func mismatch(_ what: String, _ old: Int, _ new: Int) -> VMMError {
            VMMError(
                "RAM block '\(request.name)' has \(what) \(old) in the CPR state, but \(new) on the command line",
                hint: "Start the new VMM with the memory arguments of the old one.")
        }
        guard record.usedLength == request.usedLength else {
            throw mismatch("length", record.usedLength, request.usedLength)
        }
        guard record.maxLength == request.maxLength else {
            throw mismatch("maximum length", record.maxLength, request.maxLength)
        }
        guard record.alignment == request.alignment else {
            throw mismatch("alignment", record.alignment, request.alignment)
        }
        let length = try Mapping.fileLength(record.fd)
        guard length >= record.maxLength else {
            throw VMMError("the memory of RAM block '\(request.name)' has \(length) bytes, not \(record.maxLength)")
        }
        handedOver[index] = nil
        return record
    }

    /// Remembers a block's memory for the next process.
    /// - Throws: an error when the name is taken.
    public func save(_ record: RAMRecord) throws(VMMError) {
        guard currentNames.insert(record.name).inserted else {
            throw VMMError("RAM block '\(record.name)' is already recorded")
        }
        current.append(record)
    }

    /// Forgets a freed block.
    public func delete(_ name: String) {
        guard currentNames.remove(name) != nil else { return }
        current.removeAll { $0.name == name }
    }
}
