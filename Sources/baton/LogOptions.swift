import BatonRuntime

/// `-d`, `-trace` and `-D`.
enum LogOptions {
    static func apply(_ invocation: Invocation) throws(VMMError) {
        // Asking for the items or events makes no log.
        if Help.isWanted(invocation, "d") || Help.isWanted(invocation, "trace") { return }
        if let path = invocation.last("D") { try Log.open(file: path) }
        for items in invocation.all("d") { try Log.enable(items: items) }
        for text in invocation.all("trace") {
            let options = try KeyValueOptions(text, impliedKey: "enable")
            if let pattern = try options.string("enable") { Log.enableTrace(pattern) }
            if let path = try options.string("file") { try Log.open(file: path) }
            try options.finish()
        }
    }

    /// The text of `-trace help`.
    static var traceHelp: String { Log.events.map { $0 + "\n" }.joined() }

    /// The text of `-d help`.
    static var help: String {
        var text = "Log items (comma separated):\n"
        for item in LogMask.items {
            text += item.name + String(repeating: " ", count: max(1, 16 - item.name.utf8.count)) + item.help + "\n"
        }
        return text
    }
}
