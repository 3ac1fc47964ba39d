import Foundation
import TestSupport
import Testing

/// The manual pages, and that they say what the programs say.
@Suite("Manual pages")
struct ManualTests {
    private static let pages = Result { () throws -> TemporaryDirectory in
        let directory = try TemporaryDirectory()
        _ = try ChildProcess.run([
            demo, "manual", "--programs", Products.directory, "--sources",
            "\(Products.repository)/Sources/Packaging/man", "--output", directory.path,
        ])
        return directory
    }
    private func page(_ name: String) throws -> String {
        try String(contentsOfFile: try Self.pages.get().file(name), encoding: .utf8)
    }
    static let names = ["baton.1", "baton-ctl.1", "baton-harness.1", "baton-cpr.7", "baton-module.7"]

    /// As a reader sees it, in one line.
    private func rendered(_ name: String) throws -> String {
        let text = try ChildProcess.run(["mandoc", "-T", "utf8", "-O", "width=120", try Self.pages.get().file(name)])
        // Bold and underlined letters are written twice.
        let plain = text.replacingOccurrences(of: ".\u{8}", with: "", options: .regularExpression)
        return plain.split(whereSeparator: \.isWhitespace).joined(separator: " ")
    }

    @Test("They are without warnings", .enabled(if: Products.find("mandoc") != nil, "needs mandoc"), arguments: names)
    func lint(_ name: String) throws {
        let process = try ChildProcess(["mandoc", "-T", "lint", "-W", "warning", try Self.pages.get().file(name)])
        #expect(try process.waitForExit() == .status(0), "\(process.output)")
        let text = try page(name)
        #expect(!text.contains("\n@") && !text.contains("@VERSION@"))
    }

    @Test(
        "Each option of -help is in baton(1), as -help has it",
        .enabled(if: Products.find("mandoc") != nil, "needs mandoc"))
    func options() throws {
        let manual = try rendered("baton.1").replacingOccurrences(of: " ", with: "").lowercased()
        let help = try ChildProcess.run([Products.baton, "-help"])
        var count = 0
        for line in help.split(separator: "\n").dropFirst() {
            let words = line.split(separator: " ")
            if line.hasPrefix("-") { count += 1 }
            guard line.hasPrefix("-") || line.hasPrefix(" ") else { continue }
            #expect(manual.contains(words.joined().lowercased()), "\(line)")
        }
        #expect(count > 40)
    }

    @Test("Each command and option of the tools is in their pages", arguments: ["baton-ctl", "baton-harness"])
    func tools(_ program: String) throws {
        let manual = try page("\(program).1")
        let completion = try ChildProcess.run(["\(Products.directory)/\(program)", "--experimental-dump-help"])
        let root = try #require(
            (try JSONSerialization.jsonObject(with: Data(completion.utf8)) as? [String: Any])?["command"]
                as? [String: Any])
        let commands = (root["subcommands"] as? [[String: Any]] ?? []).filter {
            $0["commandName"] as? String != "help" && $0["shouldDisplay"] as? Bool != false
        }
        #expect(!commands.isEmpty)
        for command in commands {
            let name = try #require(command["commandName"] as? String)
            if program == "baton-ctl" {
                #expect(manual.contains(".Ss \"\\&\(name.replacingOccurrences(of: "-", with: "\\-"))\""), "\(name)")
            }
            for argument in command["arguments"] as? [[String: Any]] ?? [] {
                for option in argument["names"] as? [[String: Any]] ?? [] where option["kind"] as? String == "long" {
                    let long = try #require(option["name"] as? String)
                    guard long != "help", argument["shouldDisplay"] as? Bool == true else { continue }
                    #expect(
                        manual.contains("\\-\(long.replacingOccurrences(of: "-", with: "\\-"))\""), "\(name) \(long)")
                }
            }
        }
    }

    @Test("What the pages' own text names as an option of baton is one", arguments: names)
    func prose(_ name: String) throws {
        let source = try String(
            contentsOfFile: "\(Products.repository)/Sources/Packaging/man/\(name).in", encoding: .utf8)
        let known = try ChildProcess.run([Products.baton, "-help"]).split(separator: "\n")
            .compactMap { $0.hasPrefix("-") ? $0.split(separator: " ").first.map { String($0.dropFirst()) } : nil }
        for line in source.split(separator: "\n") where line.hasPrefix(".Fl ") || line.contains(" Fl ") {
            let words = line.split(separator: " ").map(String.init)
            for (index, word) in words.enumerated() where word == ".Fl" || word == "Fl" {
                let option = words[index + 1]
                // Two dashes: of a tool.
                guard !option.hasPrefix("-") else { continue }
                #expect(known.contains(option), "\(name): -\(option)")
            }
        }
    }

    @Test(
        "The completion of baton knows its options and what they can be",
        .enabled(if: Products.find("bash") != nil, "needs bash"))
    func completion() throws {
        let script = "\(Products.repository)/Sources/Packaging/completion/baton.bash"
        func complete(_ words: [String]) throws -> [String] {
            let text = """
                source '\(script)'
                COMP_WORDS=(\(words.map { "'\($0)'" }.joined(separator: " "))) COMP_CWORD=\(words.count - 1)
                _baton '\(Products.baton)'
                printf '%s\\n' "${COMPREPLY[@]}"
                """
            return try ChildProcess.run(["bash", "-c", text]).split(separator: "\n").map(String.init)
        }
        #expect(try complete(["baton", "-cpr"]) == ["-cpr-enable"])
        #expect(try complete(["baton", "-cpr-enable", "re"]).sorted() == ["reboot", "restart"])
        #expect(try complete(["baton", "-device", "virtio-blk-d"]) == ["virtio-blk-device"])
        #expect(try complete(["baton", "-chardev", "so"]) == ["socket"])
    }
}
