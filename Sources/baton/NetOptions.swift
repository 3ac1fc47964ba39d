import BatonRuntime

/// `-netdev`, and the short forms that stand for one with a card: `-nic` and `-net`.
///
/// Without any of them there is no network. QEMU makes a card with `-nic user` then; here a program is started for a guest
/// only if somebody asks for it.
struct NetOptions {
    /// A card that a short form stands for.
    struct Card {
        /// nil for what the machine has.
        let model: String?
        let backend: String
        let mac: String?

        /// Its `-device`.
        func device(onPCI: Bool) -> String {
            let model = model ?? (onPCI ? "virtio-net-pci" : "virtio-net-device")
            return "\(model),netdev=\(backend)" + (mac.map { ",mac=\($0)" } ?? "")
        }
    }

    /// A back end to make.
    struct Backend {
        /// Parsed with the implied key `type`.
        let options: KeyValueOptions
        /// Of `-netdev` in a file: where.
        var place: String?
    }

    private(set) var backends: [Backend] = []
    private(set) var cards: [Card] = []

    private static let models = ["virtio-net-pci", "virtio-net-device"]

    /// - Parameter netdevs: `-netdev`, and what came since.
    init(_ invocation: Invocation, netdevs: [Invocation.Option]) throws(VMMError) {
        for option in netdevs {
            try invocation.at(option.place) { () throws(VMMError) in
                let options = try KeyValueOptions(option.value, impliedKey: "type", style: .keyval)
                backends.append(Backend(options: options, place: option.place))
            }
        }
        var index = 0
        try invocation.each("nic") { text throws(VMMError) in
            do throws(VMMError) { try addCard(text, index) } catch { throw error.prefixed("-nic \(text)") }
            index += 1
        }
        try addHub(invocation.all("net"))
    }

    /// `-nic BACKEND[,model=MODEL][,mac=ADDRESS][,more of -netdev]`.
    private mutating func addCard(_ text: String, _ index: Int) throws(VMMError) {
        let options = try KeyValueOptions(text, impliedKey: "type")
        guard let type = try options.string("type") else { throw VMMError("Parameter 'type' is missing") }
        let model = try NetOptions.model(options)
        let mac = try options.string("mac")
        guard type != "none" else { return try options.finish() }
        let id = try options.identifier("id") ?? "nic\(index)"
        options.set("id", id)
        backends.append(Backend(options: options))
        cards.append(Card(model: model, backend: id, mac: mac))
    }

    /// `-net`: a card and a back end on a hub. More than one of either would need a hub, which there is not.
    private mutating func addHub(_ arguments: [String]) throws(VMMError) {
        var card: (model: String?, mac: String?, backend: String?)?
        var backend: (options: KeyValueOptions, id: String)?
        for text in arguments {
            do throws(VMMError) {
                let options = try KeyValueOptions(text, impliedKey: "type")
                let type = try options.string("type")
                switch type {
                case "none": try options.finish()
                case "nic":
                    guard card == nil else { throw NetOptions.noHub }
                    card = (
                        try NetOptions.model(options), try options.string("macaddr"), try options.string("netdev")
                    )
                    _ = try options.string("name")
                    try options.finish()
                default:
                    guard backend == nil else { throw NetOptions.noHub }
                    let name = try options.identifier("name")
                    let id = try options.identifier("id") ?? name ?? "hub0"
                    options.set("id", id)
                    backend = (options, id)
                }
            } catch {
                throw error.prefixed("-net \(text)")
            }
        }
        if let backend { backends.append(Backend(options: backend.options)) }
        if let card {
            guard let id = card.backend ?? backend?.id else {
                throw VMMError("-net nic needs a back end", hint: "Say -net user too, or -nic user in place of both.")
            }
            cards.append(Card(model: card.model, backend: id, mac: card.mac))
        }
    }

    private static let noHub = VMMError(
        "there is no hub for more than one card or back end", hint: "Use -nic, once for each card.")

    private static func model(_ options: KeyValueOptions) throws(VMMError) -> String? {
        guard let model = try options.string("model"), model != "virtio" else { return nil }
        guard models.contains(model) else {
            throw VMMError(
                "Unsupported NIC model: \(model)", hint: "Use one of: virtio, \(models.joined(separator: ", ")).")
        }
        return model
    }
}
