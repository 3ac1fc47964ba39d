import BatonRuntime

/// Text in columns as wide as their contents need.
struct Table {
    struct Column {
        var title: String
        /// Numbers stand at the right.
        var isNumber = false
    }

    let columns: [Column]
    private var rows: [[String]] = []

    init(_ columns: [Column]) { self.columns = columns }

    /// - Parameter cells: one a column. They may quote a guest.
    mutating func add(_ cells: [String]) { rows.append(cells.map { TerminalText.escaped($0) }) }

    /// A line a row, with the titles first; each ends in a newline.
    var text: String {
        let all = [columns.map(\.title)] + rows
        let widths = columns.indices.map { index in all.map { $0[index].count }.max() ?? 0 }
        return all.map { row in
            var line = ""
            for (index, cell) in row.enumerated() {
                let padding = String(repeating: " ", count: widths[index] - cell.count)
                line += (index > 0 ? "  " : "") + (columns[index].isNumber ? padding + cell : cell + padding)
            }
            while line.last == " " { line.removeLast() }
            return line + "\n"
        }.joined()
    }
}

/// Figures for people.
enum Figure {
    /// `512M`, `1.5G`; whole numbers of a unit as such.
    static func bytes(_ value: Double) -> String { scaled(value, by: 1024, units: ["", "K", "M", "G", "T", "P"]) }
    /// `1.2k`, `35M`.
    static func count(_ value: Double) -> String { scaled(value, by: 1000, units: ["", "k", "M", "G", "T", "P"]) }
    /// `0.612 ms`.
    static func milliseconds(microseconds: Int64) -> String { "\(decimal(Double(microseconds) / 1000, 3)) ms" }

    private static func scaled(_ value: Double, by step: Double, units: [String]) -> String {
        var value = value
        var unit = 0
        while value >= step, unit + 1 < units.count {
            value /= step
            unit += 1
        }
        let isWhole = value >= 10 || value == value.rounded()
        return (isWhole ? decimal(value, 0) : decimal(value, 1)) + units[unit]
    }

    static func decimal(_ value: Double, _ places: Int) -> String {
        var power = 1.0
        for _ in 0..<places { power *= 10 }
        let scaled = Int64(max(0, value * power).rounded())
        guard places > 0 else { return String(scaled) }
        let digits = String(scaled)
        let padded = String(repeating: "0", count: max(0, places + 1 - digits.count)) + digits
        return "\(padded.dropLast(places)).\(padded.suffix(places))"
    }
}
