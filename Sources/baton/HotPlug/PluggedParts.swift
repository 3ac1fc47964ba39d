import BatonRuntime

/// What clients have added to the machine since the command line, and taken away of that: the next VMM, whose command
/// line may know nothing of it, makes the same machine of both.
final class PluggedParts: PluggedOptions {
    /// In the order in which they are made. The names are those of the options, and part of the CPR state.
    enum Kind: String, CaseIterable {
        case object
        case chardev
        case blockdev
        case netdev
        case device

        fileprivate var impliedKey: String {
            switch self {
            case .object: "qom-type"
            case .chardev: "backend"
            case .blockdev, .device: "driver"
            case .netdev: "type"
            }
        }
        fileprivate var idKey: String { self == .blockdev ? "node-name" : "id" }
    }

    private struct Part {
        let kind: Kind
        /// Empty for a device without one.
        let id: String
        /// As the argument of its option.
        let options: String
    }

    private var added: [Part] = []
    /// Arguments of this command line.
    private var given: [Kind: [String]] = [:]
    private var removed: [(kind: Kind, id: String)] = []

    private static let part = "plugged"
    private static let limit = 100_000

    /// - Parameter handover: has what the process before says, and is told in the next update.
    init(_ handover: (any MachineHandover)?) throws(VMMError) {
        guard let handover else { return }
        if let state = try handover.inheritedPart(PluggedParts.part) { try read(state) }
        handover.takePart(
            handOver: { [unowned self, unowned handover] () throws(VMMError) in
                guard !added.isEmpty || !removed.isEmpty else { return }
                handover.handOver(PluggedParts.part, state)
            }, failed: {}, committed: {})
    }

    private func read(_ state: StateReader) throws(VMMError) {
        func kinds(_ field: String) throws(VMMError) -> [Kind] {
            var kinds: [Kind] = []
            for name in try state.strings(field, count: 0...PluggedParts.limit) {
                guard let kind = Kind(rawValue: name) else {
                    throw VMMError("something of the kind '\(name)' was plugged, which this VMM does not know")
                }
                kinds.append(kind)
            }
            return kinds
        }
        let (addedKinds, removedKinds) = (try kinds("added-kinds"), try kinds("removed-kinds"))
        let ids = try state.strings("added-ids", count: addedKinds.count...addedKinds.count)
        let options = try state.strings("added-options", count: addedKinds.count...addedKinds.count)
        let removedIDs = try state.strings("removed-ids", count: removedKinds.count...removedKinds.count)
        try state.finish()
        for (index, kind) in addedKinds.enumerated() {
            added.append(Part(kind: kind, id: ids[index], options: options[index]))
        }
        for (kind, id) in zip(removedKinds, removedIDs) { removed.append((kind, id)) }
    }

    private var state: StateWriter {
        var writer = StateWriter()
        writer.put("added-kinds", added.map(\.kind.rawValue))
        writer.put("added-ids", added.map(\.id))
        writer.put("added-options", added.map(\.options))
        writer.put("removed-kinds", removed.map(\.kind.rawValue))
        writer.put("removed-ids", removed.map(\.id))
        return writer
    }

    // MARK: At the start

    /// Whether a part of the command line was taken away since.
    func wasRemoved(_ kind: Kind, _ id: String?) -> Bool { removed.contains { $0.kind == kind && $0.id == id } }

    /// The parts that clients have added and the command line does not have.
    func added(_ kind: Kind, besides options: [Invocation.Option]) -> [Invocation.Option] {
        let texts = options.map(\.value)
        given[kind] = texts
        guard added.contains(where: { $0.kind == kind }) else { return [] }
        // What the command line has by now is its own, unless it is one that was there before and has gone. The next one
        // may be without it again.
        let known = Set(texts.compactMap { id(of: kind, $0) }.filter { !wasRemoved(kind, $0) })
        return added.filter { $0.kind == kind && !known.contains($0.id) }
            .map { Invocation.Option(name: kind.rawValue, value: $0.options, place: nil) }
    }

    /// The parts that there are now: those of the command line that were not taken away, and those that came since.
    func settle(_ kind: Kind, _ invocation: Invocation) -> [Invocation.Option] {
        let options = invocation.inOrder([kind.rawValue])
        let added = added(kind, besides: options)
        guard removed.contains(where: { $0.kind == kind }) else { return options + added }
        return options.filter { !wasRemoved(kind, id(of: kind, $0.value)) } + added
    }

    /// What is wrong with an argument is said by whoever uses it.
    private func id(of kind: Kind, _ text: String) -> String? {
        let style: KeyValueOptions.Style = kind == .device || kind == .chardev ? .options : .keyval
        let options = try? KeyValueOptions(text, impliedKey: kind.impliedKey, style: style)
        return try? options?.string(kind.idKey)
    }

    // MARK: For another start

    var pluggedOptions: [String] {
        Kind.allCases.flatMap { kind in added.filter { $0.kind == kind }.map { "-\(kind.rawValue) \($0.options)" } }
    }

    /// A part that has no name is the same if all of its options are.
    func lacking(of options: [String]) -> [String] {
        options.filter { option in
            guard let space = option.firstIndex(of: " "),
                let kind = Kind(rawValue: String(option[..<space].dropFirst()))
            else { return false }
            let text = String(option[option.index(after: space)...])
            let here = (given[kind] ?? []) + added.filter { $0.kind == kind }.map(\.options)
            guard let id = id(of: kind, text) else { return !here.contains(text) }
            return !here.contains { self.id(of: kind, $0) == id }
        }
    }

    // MARK: While the machine exists

    /// A client has added a part.
    func add(_ kind: Kind, _ id: String?, _ options: String) {
        added.append(Part(kind: kind, id: id ?? "", options: options))
    }

    /// A client has taken a part away, or the guest has let go of it.
    func remove(_ kind: Kind, _ id: String) {
        added.removeAll { $0.kind == kind && $0.id == id }
        // One of that name may come again, and is another then.
        if !wasRemoved(kind, id), given[kind]?.contains(where: { self.id(of: kind, $0) == id }) == true {
            removed.append((kind, id))
        }
    }

    /// A part without a name is gone.
    func remove(_ kind: Kind, options: String) { added.removeAll { $0.kind == kind && $0.options == options } }
}
