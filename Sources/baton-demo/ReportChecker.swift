/// Judges every report of the guest: none missing, none twice, each with the
/// checksum that its count must have.
final class ReportChecker {
    private let model: WorkModel
    private var last: GuestReport?
    private(set) var checked = 0
    /// The first thing that was wrong.
    private(set) var error: String?

    /// - Parameter after: the last report that was read in another process, which may have had a part of the next.
    init(model: WorkModel, after last: GuestReport? = nil) {
        self.model = model
        self.last = last
        mayMissOne = last != nil
    }
    private var mayMissOne: Bool

    func check(_ report: GuestReport) {
        guard error == nil else { return }
        var expectedLine = (last?.line ?? 0) + 1
        if mayMissOne, report.line == expectedLine + 1 { expectedLine += 1 }
        mayMissOne = false
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
