/// What parts hand over, by their names, in the order in which they have.
struct PartStates {
    struct Part {
        var name: String
        var version: UInt32
        var payload: ArraySlice<UInt8>
    }

    private(set) var all: [Part] = []
    /// Where each is. While parts are added one does not look for them: that is in the guest's pause.
    private var places: [String: Int] = [:]

    init() {}

    /// - Parameter parts: whose names are unique.
    init(_ parts: [Part]) {
        all = parts
        places.reserveCapacity(parts.count)
        for (index, part) in parts.enumerated() { places[part.name] = index }
    }

    mutating func add(_ part: Part) { all.append(part) }

    func find(_ name: String) -> Part? {
        if let place = places[name] { return all[place] }
        return places.count == all.count ? nil : all.last { $0.name == name }
    }

    /// What of these differs from what was before, part by part; or was not there.
    /// - Returns: that, and the names of what is there no more, sorted.
    func changes(since before: PartStates) -> ([Part], gone: [String]) {
        var changed: [Part] = []
        // Whatever hands over does so in the same order each time.
        let same = zip(before.all, all).prefix { $0.name == $1.name }.count
        for (old, new) in zip(before.all[..<same], all[..<same]) where !old.isEqual(to: new) { changed.append(new) }
        var left: [String: Part] = [:]
        for part in before.all[same...] { left[part.name] = part }
        for part in all[same...] where left.removeValue(forKey: part.name)?.isEqual(to: part) != true {
            changed.append(part)
        }
        return (changed, left.keys.sorted())
    }
}

extension PartStates.Part {
    /// Of two parts of one name.
    fileprivate func isEqual(to other: PartStates.Part) -> Bool {
        version == other.version && payload == other.payload
    }
}
