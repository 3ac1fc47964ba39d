/// Figures of one name, as Prometheus has them: what is measured, and a value for each combination of labels.
public struct MetricFamily {
    public enum Kind: String {
        /// Only grows, from 0 when the process began.
        case counter
        case gauge
    }
    public struct Sample {
        public var labels: [(name: String, value: String)]
        public var value: Double
    }

    /// Prometheus' form: `baton_updates_total`. The base unit is part of it (`_bytes`, `_seconds`).
    public let name: String
    public let kind: Kind
    /// One sentence for people.
    public let help: String
    public private(set) var samples: [Sample] = []

    public init(_ name: String, _ kind: Kind, help: String) {
        (self.name, self.kind, self.help) = (name, kind, help)
    }

    /// A family of one figure without labels.
    public init(_ name: String, _ kind: Kind, help: String, value: Double) {
        self.init(name, kind, help: help)
        add(value)
    }

    /// - Parameter labels: names are letters, digits and `_`; values are any text.
    public mutating func add(_ value: Double, _ labels: [(name: String, value: String)] = []) {
        samples.append(Sample(labels: labels, value: value))
    }

    fileprivate mutating func add(_ more: [Sample]) { samples += more }
}

/// Where a machine's metrics come from. Nothing is collected until somebody asks: parts count what is cheap to count,
/// and say here how it is read. With the VM lock held.
public final class MetricSources: MachineParts {
    private var sources: [() -> [MetricFamily]] = []

    public init() {}

    /// - Parameter source: called at each collection. Several may give samples to one family.
    public func add(_ source: @escaping () -> [MetricFamily]) { sources.append(source) }

    /// All figures now; each family once, in the order in which it was first named.
    public func collect() -> [MetricFamily] {
        var families: [MetricFamily] = []
        var places: [String: Int] = [:]
        for family in sources.flatMap({ $0() }) {
            if let place = places[family.name] {
                families[place].add(family.samples)
            } else {
                places[family.name] = families.count
                families.append(family)
            }
        }
        return families
    }
}

extension VirtualMachine {
    public var metrics: MetricSources { parts(MetricSources.self) }
}
