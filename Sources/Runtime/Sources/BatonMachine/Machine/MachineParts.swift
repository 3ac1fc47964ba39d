/// Parts of one kind that a floor above keeps with the machine, which need not know the kind: chardevs, disks.
public protocol MachineParts: AnyObject {
    /// Makes the list of a machine without such parts.
    init()
}

/// The lists of parts of one machine, each made when it is first asked for.
struct MachinePartLists {
    private var lists: [ObjectIdentifier: any MachineParts] = [:]

    mutating func list<List: MachineParts>(_ kind: List.Type) -> List {
        if let known = lists[ObjectIdentifier(kind)] as? List { return known }
        let list = List()
        lists[ObjectIdentifier(kind)] = list
        return list
    }
}
