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
        try directory.write("more", "-no-such-option\n")
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
        // A line may end as in DOS: the next one is a line of its own.
        #expect(
            try complaint(["@\(file)"]).contains("\(directory.file("more")), line 1: -no-such-option: invalid option"))
        try directory.write("more", "")
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

    @Test("-readconfig takes QEMU's format: a section is an option, a line one of its properties")
    func configuration() throws {
        let kernel = try directory.write("kernel", "a flat image")
        try directory.writeSparse("disk, one", size: 4 << 20)
        let tree = directory.file("dtb")
        let file = try directory.write(
            "vm.cfg",
            """
            # qemu config file
            [machine]
              type = "virt"
              dumpdtb = "\(tree)"
              kernel = "\(kernel)"\r
              append = "console=ttyS0, #1"
            [memory]  # in MiB
              size = "64"
            [smp-opts]
              cpus = "3"
            [drive "hd"]
              if = "none"
            file = "\(directory.file("disk, one"))"
              format="raw"
            [device "d0"]
              driver = "virtio-blk-device"
              drive = "hd"
            [global]
              driver = "virtio-rng-device"
              property = "rng"
              value = ""
            [chardev "c0"]
              backend = "null"
            [mon]
              chardev = "c0"
              mode = "control"
            """)
        let process = try ChildProcess([Products.baton, "-nodefaults", "-readconfig", file])
        #expect(try process.waitForExit() == .status(0), "\(process.errors)")
        let bytes = try Data(contentsOf: URL(fileURLWithPath: tree))
        #expect(bytes.range(of: Data("console=ttyS0, #1".utf8)) != nil)
        #expect(bytes.range(of: Data("cpu@2".utf8)) != nil && bytes.range(of: Data("cpu@3".utf8)) == nil)
        // What comes later on the command line holds, also from a file of words.
        try directory.write("vm", "-readconfig \(file) -smp 1\n")
        let other = try ChildProcess([Products.baton, "-nodefaults", "@\(directory.file("vm"))"])
        #expect(try other.waitForExit() == .status(0), "\(other.errors)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: tree)).range(of: Data("cpu@1".utf8)) == nil)
    }

    @Test(
        "What is wrong in a file of -readconfig is told with file and line",
        arguments: [
            ("[machine\n", 1, "parse error"), ("\n[machine]\ntype = virt\n", 3, "parse error"),
            ("[machine]\ntype = \"virt\" x\n", 2, "parse error"), ("type = \"virt\"\n", 1, "no group defined"),
            ("[machine]\n\n[memories]\n", 3, "There is no option group 'memories'"),
            ("[kernel]\n", 1, "There is no option group 'kernel'"), ("[m]\n", 1, "There is no option group 'm'"),
            ("[drive \"1\"]\n", 1, "Parameter 'id' expects an identifier"),
            ("[memory]\nsize,x = \"1\"\n", 2, "Invalid parameter 'size,x'"),
            ("#\n[memory]\nsizes = \"1\"\n", 2, "Invalid parameter 'sizes'"),
            ("[memory]\nsize = \"1G\"\n\n[device \"d\"]\ndriver = \"nothing\"\n", 4, "'nothing' is not a valid"),
            ("[chardev]\nbackend = \"null\"\n", 1, "no id specified"),
            ("[drive \"d\"]\nfile = \"/nowhere\"\n", 1, "/nowhere"),
            ("[netdev \"n\"]\ntype = \"carrier-pigeon\"\n", 1, "carrier-pigeon"),
            ("[object \"o\"]\nqom-type = \"thing\"\n", 1, "invalid object type: thing"),
            ("[mon]\nchardev = \"c\"\n", 1, "chardev \"c\" not found"),
        ])
    func wrongConfiguration(_ text: String, line: Int, words: String) throws {
        let file = try directory.write("vm.cfg", text)
        let said = try complaint(["-readconfig", file])
        #expect(said.contains("\(file), line \(line): ") && said.contains(words), "\(said)")
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
