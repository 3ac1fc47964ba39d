/// Judges every report of the guest: none missing, none twice, each with the
/// checksum that its count must have.
final class ReportChecker {
    private let model: WorkModel
    private var last: GuestReport?
    private(set) var checked = 0
    /// The first thing that was wrong.
    private(set) var error: String?

    init(model: WorkModel) { self.model = model }

    func check(_ report: GuestReport) {
        guard error == nil else { return }
        let expectedLine = (last?.line ?? 0) + 1
        if report.line != expectedLine {
            error = "the guest's line \(expectedLine) is missing: \(report.line) came"
        } else if let last, report.count <= last.count {
            error = "the guest's counter went from \(last.count) to \(report.count)"
        } else if let last, report.count - last.count > 1 << 40 {
            error = "the guest's counter jumped from \(last.count) to \(report.count)"
        } else if model.sum(after: report.count) != report.sum {
            error = "the guest's checksum is wrong at count \(report.count)"
        }
        last = report
        checked += 1
    }
}
