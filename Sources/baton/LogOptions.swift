import BatonRuntime

/// `-msg`, `-d`, `-trace` and `-D`.
enum LogOptions {
    /// - Parameter isTrial: the log goes to standard error, as the file is not a trial's to make or write. Whether it could be
    ///   is checked.
    static func apply(_ invocation: Invocation, isTrial: Bool) throws(VMMError) {
        try applyPrefix(invocation)
        // Asking for the items or events makes no log.
        if Help.isWanted(invocation, "d") || Help.isWanted(invocation, "trace") { return }
        func open(_ path: String) throws(VMMError) {
            if isTrial { try Log.check(file: path) } else { try Log.open(file: path) }
        }
        if let path = invocation.last("D") { try open(path) }
        for items in invocation.all("d") { try Log.enable(items: items) }
        try invocation.each("trace") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "enable")
            if let pattern = try options.string("enable") { Log.enableTrace(pattern) }
            if let path = try options.string("file") { try open(path) }
            try options.finish()
        }
    }

    private static func applyPrefix(_ invocation: Invocation) throws(VMMError) {
        if Help.isWanted(invocation, "msg") { return }
        try invocation.each("msg") { text throws(VMMError) in
            let options = try KeyValueOptions(text)
            if let wanted = try options.bool("timestamp") { LogPrefix.hasTimestamp = wanted }
            if let wanted = try options.bool("guest-name") {
                // Whatever is wrong with -name is said where it is used.
                let name = invocation.last("name").flatMap { try? KeyValueOptions($0, impliedKey: "guest") }
                LogPrefix.guestName = wanted ? name.flatMap { try? $0.string("guest") } : nil
            }
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
