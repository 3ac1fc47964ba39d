import Foundation
import ProcessSupport

/// A picture of one update, as an SVG: when each VMM does what, when the guest runs and when it stands still, on one scale
/// of time; and the change of hands once more, enlarged.
struct UpdatePicture {
    /// `query-cpr`'s figures of the update, in microseconds, by their names without `-us`.
    let phases: [String: Double]
    /// The longest gap that the guest saw, in ms.
    let gap: Double
    /// What was measured, for the line below.
    let caption: String

    private static let width = 840.0
    private static let height = 344.0
    private static let left = 92.0
    private static let right = 24.0
    private static let barHeight = 30.0
    /// Milliseconds that are shown before the update and after it.
    private static let margin = 1.0

    private enum Colour {
        static let runs = "#2e8b57"
        static let stands = "#d1495b"
        static let oldVMM = "#6c8ebf"
        static let newVMM = "#e0a458"
        static let waits = "#e6e1d8"
        static let text = "#222222"
        static let faint = "#777777"
    }

    /// The parts of the change of hands, in order.
    private static let parts = [
        ("stop", "stop"), ("drain", "drain"), ("save", "save"), ("wait-load", "hand over"), ("load", "load"),
        ("resume", "resume"),
    ]

    private func milliseconds(_ name: String) -> Double { (phases[name] ?? 0) / 1000 }

    /// The text of the file.
    func svg() -> String {
        let execPause = milliseconds("exec-pause"), ran = milliseconds("ran"), pause = milliseconds("pause")
        let ready = milliseconds("exec") + milliseconds("start-up") + milliseconds("map")
        let end = execPause + ran + pause
        let shown = end + 2 * Self.margin
        let scale = (Self.width - Self.left - Self.right) / shown
        /// Where a time is, in ms from the stop for the exec on.
        func x(_ time: Double) -> Double { Self.left + (time + Self.margin) * scale }

        var canvas = SVGCanvas(width: Self.width, height: Self.height)
        canvas.text("A live update, as measured", x: Self.left, y: 26, size: 16, colour: Colour.text, weight: "bold")
        canvas.text(caption, x: Self.left, y: 44, size: 11, colour: Colour.faint)

        func lane(_ name: String, y: Double, _ bars: [(from: Double, to: Double, colour: String, label: String)]) {
            canvas.text(name, x: Self.left - 10, y: y + 20, size: 13, colour: Colour.text, anchor: "end")
            for bar in bars where bar.to > bar.from {
                let width = max((bar.to - bar.from) * scale, 1)
                canvas.rectangle(x: x(bar.from), y: y, width: width, height: Self.barHeight, colour: bar.colour)
                if !bar.label.isEmpty, width > Double(bar.label.count) * 6.6 {
                    canvas.text(
                        bar.label, x: x(bar.from) + width / 2, y: y + 19, size: 11, colour: "#ffffff", anchor: "middle")
                }
            }
        }
        let start = -Self.margin, stop = end + Self.margin
        lane(
            "old VMM", y: 64,
            [
                (start, execPause + ran, Colour.oldVMM, "goes on with the guest, its devices and monitors"),
                (execPause + ran, end, Colour.oldVMM, ""),
            ])
        lane(
            "new VMM", y: 106,
            [
                (0, min(ready, execPause + ran), Colour.newVMM, String(format: "starts: %.1f ms", ready)),
                (min(ready, execPause + ran), execPause + ran, Colour.waits, ""),
                (execPause + ran, stop, Colour.newVMM, ""),
            ])
        lane(
            "guest", y: 148,
            [
                (start, 0, Colour.runs, "runs"), (0, execPause, Colour.stands, ""),
                (execPause, execPause + ran, Colour.runs, "runs"), (execPause + ran, end, Colour.stands, ""),
                (end, stop, Colour.runs, "runs"),
            ])
        canvas.text(
            String(format: "%.2f ms", execPause), x: x(execPause / 2), y: 194, size: 11, colour: Colour.stands,
            anchor: "middle")
        canvas.text(
            String(format: "%.2f ms", pause), x: x(execPause + ran + pause / 2), y: 194, size: 11,
            colour: Colour.stands, anchor: "middle")
        axis(&canvas, y: 206, from: start, to: stop, x)
        enlarge(&canvas, pause: pause, from: x(execPause + ran), to: x(end))
        canvas.text(
            String(format: "The longest gap that the guest saw by its own clock: %.2f ms.", gap), x: Self.left,
            y: Self.height - 14, size: 12, colour: Colour.text)
        return canvas.finished()
    }

    private func axis(
        _ canvas: inout SVGCanvas, y: Double, from: Double, to: Double, _ x: (Double) -> Double
    ) {
        canvas.line(x(from), y, x(to), y, colour: Colour.faint)
        let step = [0.5, 1, 2, 5, 10, 20, 50].first { (to - from) / $0 <= 14 } ?? 100
        var time = (from / step).rounded(.up) * step
        while time <= to {
            canvas.line(x(time), y, x(time), y + 4, colour: Colour.faint)
            canvas.text(
                (abs(time) < 1e-9 ? "0 ms" : String(format: step < 1 ? "%.1f" : "%.0f", time)), x: x(time),
                y: y + 16,
                size: 10, colour: Colour.faint, anchor: "middle")
            time += step
        }
    }

    /// The change of hands in its parts, over the whole width.
    private func enlarge(_ canvas: inout SVGCanvas, pause: Double, from: Double, to: Double) {
        let y = 258.0, width = Self.width - Self.left - Self.right
        canvas.line(from, 180, Self.left, y, colour: Colour.faint, dashed: true)
        canvas.line(to, 180, Self.left + width, y, colour: Colour.faint, dashed: true)
        canvas.text("its pause", x: Self.left - 10, y: y + 20, size: 13, colour: Colour.text, anchor: "end")
        let known = Self.parts.map { milliseconds($0.0) }
        let scale = width / max(known.reduce(0, +), pause, 1e-6)
        var place = Self.left
        for (index, part) in Self.parts.enumerated() where known[index] > 0 {
            let size = known[index] * scale
            let colour = ["stop", "drain", "save"].contains(part.0) ? Colour.oldVMM : Colour.newVMM
            canvas.rectangle(x: place, y: y, width: max(size - 1, 0.5), height: Self.barHeight, colour: colour)
            if size > 30 {
                canvas.text(part.1, x: place + size / 2, y: y + 19, size: 11, colour: "#ffffff", anchor: "middle")
                canvas.text(
                    String(format: "%.0f us", known[index] * 1000), x: place + size / 2, y: y + 44, size: 10,
                    colour: Colour.faint, anchor: "middle")
            }
            place += size
        }
    }

    /// Measures updates of a counting guest.
    /// - Returns: the picture of the one whose pause is the median.
    static func measured(vmm: String, repetitions: Int, directory: TemporaryDirectory) throws -> UpdatePicture {
        let image = directory.file("picture-counter.bin")
        try GuestBuilder().build(.counter, to: image)
        let memory = try CountingMemory(size: "128M", bytes: 128 << 20, image: image)
        let socket = directory.file("picture.sock")
        let arguments =
            [vmm, "-machine", "virt,memory-backend=ram", "-cpr-enable", "restart"] + memory.arguments(socket: socket)
        let probe = try PauseProbe(arguments, page: memory.page, socketPath: socket, log: directory.file("picture.log"))
        let message = try QMPConnection.encode("cpr-update", ["argv": arguments])
        var updates: [(phases: [String: Double], gap: Double)] = []
        for _ in 0..<max(repetitions, 1) {
            let gap = try probe.gap([message])
            updates.append((try probe.phases(), gap))
        }
        try probe.command("quit")
        updates.sort { $0.phases["pause"] ?? 0 < $1.phases["pause"] ?? 0 }
        let median = updates[updates.count / 2]
        let version = try Tool.require([vmm, "-version"]).text.split(separator: "-").last ?? ""
        return UpdatePicture(
            phases: median.phases, gap: median.gap,
            caption: "cpr-update, mode restart, a counting guest with 128 MiB on software harts; of "
                + "\(updates.count) updates the one with the median pause; "
                + "Baton \(version.prefix { $0 != "+" && $0 != "\n" })")
    }
}

/// What an SVG consists of here: bars, lines and words.
struct SVGCanvas {
    private var body = ""
    private let width: Double
    private let height: Double

    init(width: Double, height: Double) { (self.width, self.height) = (width, height) }

    private static func number(_ value: Double) -> String { String(format: "%.1f", value) }
    private static func escaped(_ text: String) -> String {
        text.replacingOccurrences(of: "&", with: "&amp;").replacingOccurrences(of: "<", with: "&lt;")
            .replacingOccurrences(of: "\"", with: "&quot;")
    }

    mutating func rectangle(x: Double, y: Double, width: Double, height: Double, colour: String) {
        let (x, y, w, h) = (Self.number(x), Self.number(y), Self.number(width), Self.number(height))
        body += "<rect x=\"\(x)\" y=\"\(y)\" width=\"\(w)\" height=\"\(h)\" fill=\"\(colour)\"/>\n"
    }

    mutating func line(
        _ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, colour: String, dashed: Bool = false
    ) {
        let (a, b, c, d) = (Self.number(x1), Self.number(y1), Self.number(x2), Self.number(y2))
        body += "<line x1=\"\(a)\" y1=\"\(b)\" x2=\"\(c)\" y2=\"\(d)\" stroke=\"\(colour)\""
        body += (dashed ? " stroke-dasharray=\"3 3\"" : "") + "/>\n"
    }

    mutating func text(
        _ text: String, x: Double, y: Double, size: Int, colour: String, anchor: String = "start",
        weight: String = "normal"
    ) {
        body += "<text x=\"\(Self.number(x))\" y=\"\(Self.number(y))\" font-size=\"\(size)\" fill=\"\(colour)\" "
        body += "text-anchor=\"\(anchor)\" font-weight=\"\(weight)\">\(Self.escaped(text))</text>\n"
    }

    /// The file's text. The background is white, whatever the page's is.
    func finished() -> String {
        let (w, h) = (Self.number(width), Self.number(height))
        return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(w) \(h)\" width=\"\(w)\" height=\"\(h)\" "
            + "font-family=\"sans-serif\">\n<rect width=\"\(w)\" height=\"\(h)\" rx=\"6\" fill=\"#ffffff\"/>\n"
            + body + "</svg>\n"
    }
}
