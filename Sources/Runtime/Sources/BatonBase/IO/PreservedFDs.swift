import Glibc

/// File descriptors that outlive an exec, by name and id, as QEMU's
/// `cpr_save_fd` and its like keep them. Does not own the descriptors: each
/// belongs to the part that saved it.
public final class PreservedFDs {
    public struct Entry: Equatable {
        public let name: String
        public let id: Int
        public let fd: Int32
        /// Another one for each time that something is saved: as long as it is the
        /// same, so is what is behind the descriptor.
        package let serial: UInt64

        package init(name: String, id: Int, fd: Int32, serial: UInt64 = 0) {
            (self.name, self.id, self.fd, self.serial) = (name, id, fd, serial)
        }
    }

    package struct Key: Hashable {
        package let name: String
        package let id: Int

        package init(name: String, id: Int) {
            self.name = name
            self.id = id
        }
    }

    /// In the order of saving; nil where an entry has been deleted.
    private var slots: [Entry?] = []
    private var places: [Key: Int] = [:]
    private var most = 0

    /// What is saved, in the order in which it was.
    public var entries: [Entry] { slots.compactMap { $0 } }

    public init() {}

    /// What somebody has asked for of what the process before had saved: nobody
    /// else will miss it if it has changed since. Kept until the guest is ours.
    package private(set) var asked: Set<Key>? = []

    /// The fd saved under a name and id, or nil.
    public func find(_ name: String, id: Int = 0) -> Int32? {
        let key = Key(name: name, id: id)
        if let place = places[key] {
            asked?.insert(key)
            return slots[place]?.fd
        }
        return nil
    }

    /// The guest is this process'.
    package func forgetAsked() { asked = nil }

    private func saved(_ name: String, _ id: Int) -> Int32? {
        places[Key(name: name, id: id)].flatMap { slots[$0]?.fd }
    }

    /// Saves an fd that is not saved yet.
    /// - Throws: an error when the name and id are taken.
    public func save(_ name: String, id: Int = 0, _ fd: Int32) throws(VMMError) {
        if let old = saved(name, id) { throw conflict(name, id, fd, old) }
        places[Key(name: name, id: id)] = slots.count
        slots.append(Entry(name: name, id: id, fd: fd, serial: PreservedFDs.newSerial()))
    }

    /// Saves an fd in the place of what was saved under that name and id.
    /// - Parameter serial: of an fd that has been its owner's since a call of `newSerial`.
    public func replace(_ name: String, id: Int = 0, _ fd: Int32, serial: UInt64? = nil) {
        let key = Key(name: name, id: id)
        if places.count == places.capacity { reserve() }
        if let place = places.updateValue(slots.count, forKey: key) { slots[place] = nil }
        slots.append(Entry(name: name, id: id, fd: fd, serial: serial ?? PreservedFDs.newSerial()))
    }

    /// Makes room for as many as there have been at any time: they come at once, in the guest's pause.
    private func reserve() {
        most = max(most, 2 * places.count, 16)
        places.reserveCapacity(most)
        slots.reserveCapacity(most)
    }

    /// One that no other entry of this process has. Main thread only.
    public static func newSerial() -> UInt64 {
        lastSerial += 1
        return lastSerial
    }
    private nonisolated(unsafe) static var lastSerial: UInt64 = 0

    /// Saves an fd that may be saved already, with the same value.
    /// - Throws: QEMU's conflict error when it is saved with another value.
    public func resave(_ name: String, id: Int = 0, _ fd: Int32) throws(VMMError) {
        guard let old = saved(name, id) else { return try save(name, id: id, fd) }
        if old != fd { throw conflict(name, id, fd, old) }
    }

    private func conflict(_ name: String, _ id: Int, _ fd: Int32, _ old: Int32) -> VMMError {
        VMMError("internal error: cpr fd '\(name)' id \(id) value \(fd) already saved with a different value \(old)")
    }

    /// Forgets an fd; does nothing when there is none of that name and id.
    public func delete(_ name: String, id: Int = 0) {
        guard let place = places.removeValue(forKey: Key(name: name, id: id)) else { return }
        slots[place] = nil
        if places.isEmpty { slots.removeAll() }
        // A VM that saves and deletes for years must not grow.
        if slots.count > 64, slots.count > 2 * places.count { inherit(entries) }
    }

    /// All that is saved, to be put back.
    package struct Snapshot {
        fileprivate var slots: [Entry?]
        fileprivate var places: [Key: Int]
    }
    package var snapshot: Snapshot {
        get { Snapshot(slots: slots, places: places) }
        set { (slots, places) = (newValue.slots, newValue.places) }
    }

    /// Calls `body` for each saved fd; what it throws ends the walk.
    public func walk(_ body: (Entry) throws(VMMError) -> Void) throws(VMMError) {
        for entry in entries { try body(entry) }
    }

    /// Starts from entries whose names and ids are known to be unique.
    package func inherit(_ entries: [Entry]) {
        slots = entries
        places = [:]
        places.reserveCapacity(entries.count)
        for (index, entry) in entries.enumerated() { places[Key(name: entry.name, id: entry.id)] = index }
    }
}
