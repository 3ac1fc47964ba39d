import Foundation
import TestSupport
import Testing

/// `@FILE`, and what messages begin with.
@Suite("Files of options, and the prefix of messages")
struct OptionFileTests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    /// What a VMM says that cannot start.
    private func complaint(_ arguments: [String], environment: [String: String] = [:]) throws -> String {
        let process = try ChildProcess([Products.baton] + arguments, environment: environment)
        #expect(try process.waitForExit() == .status(1), "\(process.output)")
        return process.errors
    }

    @Test("A file's words are a shell's, and stand where it is named")
    func words() throws {
        try directory.write("more", "")
        let kernel = try directory.write("kernel", "a flat image")
        let file = try directory.write(
            "vm",
            """
            # a comment, and an empty line

            -name "a  b"  # behind an option
              -append 'root=#1 "quoted"' \\
            -append console=ttyS0#2\\ x\r
            @\(directory.file("more"))
            -machine virt,dumpdtb=\(directory.file("dtb")) -kernel \(kernel)
            """)
        let process = try ChildProcess([Products.baton, "-m", "64M", "@\(file)"])
        #expect(try process.waitForExit() == .status(0), "\(process.errors)")
        // The last of two.
        let tree = try Data(contentsOf: URL(fileURLWithPath: directory.file("dtb")))
        #expect(tree.range(of: Data("console=ttyS0#2 x".utf8)) != nil)
    }

    @Test("What an option takes is no file of options, and what is wrong is told with its place")
    func refusals() throws {
        #expect(try complaint(["-name", "@x", "-uuid", "@y"]).contains("failed to parse UUID string"))
        #expect(try complaint(["@\(directory.file("nothing"))"]).contains("No such file or directory"))
        let file = try directory.write("vm", "-S\n-name 'open\n")
        #expect(try complaint(["@\(file)"]).contains("\(file), line 2: unfinished quote '"))
        try directory.write("vm", "-S -bogus\n")
        #expect(try complaint(["@\(file)"]).contains("-bogus: invalid option"))
        try directory.write("vm", "@\(file)\n")
        #expect(try complaint(["@\(file)"]).contains("files of options name each other"))
        try directory.write("vm", Data([0x2d, 0xff, 0x0a]))
        #expect(try complaint(["@\(file)"]).contains("not valid UTF-8"))
    }

    @Test("Messages begin with the time and the guest's name when they are wanted")
    func prefix() throws {
        let wrong = ["-device", "nothing", "-name", "web1,process=x"]
        #expect(try complaint(wrong).hasPrefix("baton: "))
        let said = try complaint(wrong + ["-msg", "timestamp=on,guest-name=on"])
        let pattern = #"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z web1 baton: "#
        #expect(said.range(of: pattern, options: .regularExpression) != nil, "\(said)")
        #expect(try complaint(wrong + ["-msg", "guest-name=on"]).hasPrefix("web1 baton: "))
        #expect(try complaint(["-msg", "timestamp=maybe"]).contains("'timestamp'"))
        #expect(try complaint(["-msg", "bogus=on"]).contains("bogus"))
    }

    /// As systemd starts a service whose standard error is the journal.
    @Test("The journal gets a level with each line, and nobody else does")
    func journal() throws {
        var ends: [Int32] = [-1, -1]
        try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0)
        defer { for end in ends { close(end) } }
        var status = stat()
        fstat(ends[1], &status)
        let stream = "\(status.st_dev):\(status.st_ino)"
        let process = try ChildProcess(
            [Products.baton, "-device", "nothing"], environment: ["JOURNAL_STREAM": stream], descriptors: [2: ends[1]])
        #expect(try process.waitForExit() == .status(1))
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = recv(ends[0], &buffer, buffer.count, Int32(MSG_DONTWAIT))
        let lines = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self).split(separator: "\n")
        #expect(!lines.isEmpty && lines.allSatisfy { $0.hasPrefix("<3>") }, "\(lines)")
        // Standard error is another's here.
        #expect(try complaint(["-device", "nothing"], environment: ["JOURNAL_STREAM": stream]).hasPrefix("baton: "))
    }
}
