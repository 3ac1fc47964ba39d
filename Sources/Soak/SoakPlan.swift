import ProcessSupport

/// Draws steps: what is done next, to which machine. The same seed and machines give the same steps.
package struct SoakPlan {
    private var random: SeededGenerator
    /// Each with what can be done to it.
    private let machines: [(kind: SoakMachine.Kind, actions: [SoakAction])]

    /// How often each action is drawn, by the others.
    private static let weights: [(action: SoakAction, weight: Int)] = [
        (.update, 10), (.kill, 3), (.steps, 3), (.transfer, 4), (.reboot, 2), (.fullDisk, 3), (.slowMonitor, 2),
        (.slowSerial, 2), (.slowStorage, 6), (.plug, 3), (.unplug, 2), (.stop, 2), (.reset, 1), (.clients, 2),
    ]

    package init(seed: UInt64, machines: [SoakMachine.Kind], without: Set<SoakAction> = []) {
        random = SeededGenerator(seed: seed)
        self.machines = machines.map { ($0, $0.actions.filter { !without.contains($0) }) }
    }

    package mutating func next() -> SoakStep {
        let (kind, actions) = machines[Int.random(in: 0..<machines.count, using: &random)]
        let choices = Self.weights.filter { actions.contains($0.action) }
        var place = Int.random(in: 0..<choices.reduce(0) { $0 + $1.weight }, using: &random)
        var action = SoakAction.update
        for choice in choices {
            action = choice.action
            place -= choice.weight
            if place < 0 { break }
        }
        return SoakStep(kind, action, options(action, of: kind))
    }

    private mutating func options(_ action: SoakAction, of kind: SoakMachine.Kind) -> [String: String] {
        switch action {
        case .update: return update()
        case .kill: return ["after": "\(Int.random(in: 0..<30_000, using: &random))"]
        case .steps: return oneIn(2) ? ["then": pick(StepsEnd.allCases).rawValue] : [:]
        case .transfer:
            guard oneIn(2) else { return [:] }
            return oneIn(2)
                ? ["fault": pick(TransferFault.allCases).rawValue] : ["probe": pick(SoakProbe.inTransfers).rawValue]
        case .fullDisk, .stop: return oneIn(2) ? ["update": "yes"] : [:]
        case .slowMonitor: return ["commands": "\(Int.random(in: 1...200, using: &random))"]
        case .slowSerial: return ["updates": "\(Int.random(in: 1...3, using: &random))"]
        case .slowStorage: return oneIn(8) ? [:] : ["during": pick(StandstillDeed.allCases).rawValue]
        case .plug: return ["what": pick(kind.pluggable).rawValue]
        case .unplug:
            let what = ["what": pick(kind.pluggable).rawValue]
            return oneIn(2) ? what.merging(["update": "yes"]) { $1 } : what
        case .clients: return ["count": "\(Int.random(in: 1...6, using: &random))"]
        case .reboot, .reset, .lose: return [:]
        }
    }

    private mutating func update() -> [String: String] {
        var options: [String: String] = oneIn(2) ? ["preflight": "off"] : [:]
        switch Int.random(in: 0..<4, using: &random) {
        case 0:
            let fault = pick(SuccessorFault.possible)
            options["fault"] = fault.rawValue
            if [.lacksMemory, .lacksDescriptors, .killed].contains(fault) {
                options["seed"] = "\(Int.random(in: 0..<10_000, using: &random))"
            }
        case 1: options["probe"] = pick(SoakProbe.allCases).rawValue
        default: break
        }
        return options
    }

    private mutating func oneIn(_ count: Int) -> Bool { Int.random(in: 0..<count, using: &random) == 0 }
    private mutating func pick<T>(_ values: [T]) -> T { values[Int.random(in: 0..<values.count, using: &random)] }
}
