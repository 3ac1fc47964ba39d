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

    /// Takes over what has changed.
    /// - Parameter changed: whose names are unique.
    mutating func replace(by changed: [Part], without gone: [String]) {
        for part in changed {
            if let place = places[part.name] {
                all[place] = part
            } else {
                places[part.name] = all.count
                all.append(part)
            }
        }
        guard gone.contains(where: { places[$0] != nil }) else { return }
        let names = Set(gone)
        self = PartStates(all.filter { !names.contains($0.name) })
    }

    func find(_ name: String) -> Part? {
        if let place = places[name] { return all[place] }
        return places.count == all.count ? nil : all.last { $0.name == name }
    }

    /// What of these differs from what was before, part by part; or was not there.
    /// - Returns: that, and the names of what is there no more, sorted.
    func changes(since before: PartStates) -> ([Part], gone: [String]) {
        var changed: [Part] = []
        // Whatever hands over does so in the same order each time.
        var same = 0
        while same < min(before.all.count, all.count), before.all[same].name == all[same].name {
            if !before.all[same].isEqual(to: all[same]) { changed.append(all[same]) }
            same += 1
        }
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
