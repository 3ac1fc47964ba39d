import Foundation

/// The guest's serial console: collects what it says, keeps a log and finds
/// the reports of the demo programs.
final class GuestConsole {
    private let input: Int32
    private let output: Int32
    private let log: FileHandle?
    private var partial: [UInt8] = []

    /// The latest report, and all that the checks need of those before.
    private(set) var report: GuestReport?
    /// Lines other than reports, the last few.
    private(set) var recentLines: [String] = []
    /// A guest's own complaint, or a kernel panic.
    private(set) var complaint: String?
    /// The VMM closed its end.
    private(set) var isClosed = false

    /// Is called with each report as it comes.
    var onReport: ((GuestReport) -> Void)?
    /// Is called with each line that is no report.
    var onLine: ((String) -> Void)?
    /// Is called with everything the guest says, unchanged.
    var onBytes: ((ArraySlice<UInt8>) -> Void)?

    init(process: VMMProcess, log: String) {
        input = process.consoleInput
        output = process.consoleOutput
        _ = FileManager.default.createFile(atPath: log, contents: nil)
        self.log = FileHandle(forWritingAtPath: log)
    }

    var descriptor: Int32 { output }

    /// Takes all that is there without waiting.
    func drain() {
        var buffer = [UInt8](repeating: 0, count: 16384)
        while true {
            let count = read(output, &buffer, buffer.count)
            if count > 0 {
                take(buffer[..<count])
            } else if count == 0 {
                isClosed = true
                return
            } else if errno != EINTR {
                return
            }
        }
    }

    /// Types at the guest's console.
    func type(_ bytes: some Collection<UInt8>) {
        var rest = Array(bytes)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(input, $0.baseAddress, $0.count) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else if errno != EINTR {
                return
            }
        }
    }

    private func take(_ bytes: ArraySlice<UInt8>) {
        log?.write(Data(bytes))
        onBytes?(bytes)
        for byte in bytes {
            if byte == 0x0a {
                finishLine()
            } else if byte != 0x0d, partial.count < 4096 {
                partial.append(byte)
            }
        }
    }

    private func finishLine() {
        let line = String(decoding: partial, as: UTF8.self)
        partial.removeAll(keepingCapacity: true)
        if line.contains("baton-demo: FAIL") || line.contains("Kernel panic") { complaint = complaint ?? line }
        if let found = GuestReport(line) {
            report = found
            onReport?(found)
        } else if !line.isEmpty {
            onLine?(line)
            recentLines.append(line)
            if recentLines.count > 12 { recentLines.removeFirst() }
        }
    }
}
