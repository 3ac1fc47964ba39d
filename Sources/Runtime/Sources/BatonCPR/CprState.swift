import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What a new process must know before it makes its first device: who it takes
/// over from, and by which descriptors.
///
/// Written just before the exec into a memfd whose number the environment
/// variable `BATON_CPR_STATE` carries; a `SectionContainer` of kind `cprState`.
/// A process without the variable finds the memfd among its descriptors.
public struct CprState {
    private static let partPrefix = "part/"
    /// The environment variable that carries the memfd's number.
    public static let environmentVariable = "BATON_CPR_STATE"
    /// Tells whoever executed this process why the state cannot be read, in
    /// case it cannot: the channel's descriptor and its secret.
    static let reportVariable = "BATON_CPR_REPORT"
    /// No state is larger: a record takes at most some 300 bytes, and there
    /// are at most a million fds.
    static let sizeLimit = 512 << 20
    private static let fdLimit = 1_000_000
    /// Versions of sections: the newest is written, and each of the range is read.
    private static let fdsVersions: ClosedRange<UInt32> = 2...2
    /// 2: the guest runs on in the VMM before, which hands its state over when
    /// the new one is ready. One of version 1 stands still, and waits for nothing but
    /// the load: it cannot be taken over.
    private static let generalVersions: ClosedRange<UInt32> = 2...2
    /// In place of the number of a descriptor that goes along with the state, as
    /// the new VMM has not inherited it.
    static let passed: Int32 = 0
    private static let standInsSection = "stand-ins"
    private static let changesSection = "changes"

    /// The mode that the process before was saved in.
    public var mode: String
    public var fds: [PreservedFDs.Entry]
    public var ram: [RAMRecord]
    /// The version of the process before; nil when it did not say.
    public private(set) var version: String?
    /// When each phase of the update was reached, see `UpdateTimes`.
    public var times: UpdateTimes
    /// To the old VMM, which runs the guest until this process has it; in a
    /// trial, to the VMM that tries.
    var link: HandoverLink?
    /// Children of the process that end by themselves, see `EndingChildren`.
    var endingChildren: [pid_t] = []
    /// The parent of both VMMs, if that is one, see `Placeholder`.
    var placeholder: pid_t?
    /// What the successor finds in its environment, beside the rest of it; not
    /// part of what is written.
    var environment: [(name: String, value: String)] = []
    /// Nanoseconds that each call into a module may take.
    var callLimit: Int64?
    /// In a trial: a descriptor to load the checkpoint from without being asked to.
    public var checkpointFD: Int32?
    /// Whether the checkpoint comes at the change of hands, and is to be loaded
    /// without being asked to: the update is one command that does everything.
    var checkpointFollows = false
    /// Whether the new process is not to look for its state elsewhere.
    public var bringsCheckpoint: Bool { checkpointFD != nil || checkpointFollows }
    /// Whether the new process is to say only whether it could take the guest
    /// over: the process before runs it all the while.
    public var isTrial = false
    /// Nanoseconds of timer slack that the process before has by itself; the new
    /// one begins with `markedTimerSlack`.
    var timerSlack: UInt?
    /// What tells that the new process is of this update, see `UpdateMark`; not
    /// part of what is written.
    var markedTimerSlack: UInt?
    /// The mark of the VM, for the process that is to have its guest.
    struct Mark {
        var fd: Int32
        var number: UInt
    }
    var mark: Mark?
    /// To the warden of the sandbox that old and new VMM are in, see `HostAccess`.
    var warden: Int32?
    /// In a trial: where sockets are bound that others stand in for, by these
    /// others' descriptors; as the system has addresses.
    var addresses: [Int32: [UInt8]] = [:]
    /// At the change of hands: what was handed over to the new process when that
    /// was executed, and is there no more. All else of such a state is what has
    /// changed since; nil in a state that is complete.
    var gone: Gone?
    struct Gone {
        var fds: [PreservedFDs.Key] = []
        var parts: [String] = []
    }
    /// Whose guest it is, if no process has it while the state waits: but memory, nothing of what was open is there.
    var kept: Kept?
    /// Whether the new VMM inherits nothing: all descriptors, those of RAM first, go
    /// along with the state.
    private(set) var isSent = false
    /// How many descriptors go along with the state.
    var passedFDs: Int { ram.count { $0.fd == CprState.passed } + fds.count { $0.fd == CprState.passed } }
    /// How the last updates ended.
    public var history = UpdateHistory()
    /// Which state of guest memory this is; see `GuestMemory.identity`.
    var memoryIdentity: String?
    /// What parts must know before they are made anew: a chardev's unread
    /// bytes, a monitor's session. By the part's own name, `chardev/ID`.
    private(set) var parts = PartStates()

    public init(mode: String, fds: [PreservedFDs.Entry], ram: [RAMRecord], times: UpdateTimes) {
        self.mode = mode
        self.fds = fds
        self.ram = ram
        self.times = times
    }

    /// Hands a part's state to the next process.
    public mutating func addPart(_ name: String, version: UInt32 = 1, _ writer: StateWriter) {
        parts.add(PartStates.Part(name: name, version: version, payload: writer.encoded()[...]))
    }

    /// Takes over the parts of a later state, which has those that have changed.
    mutating func replaceParts(by later: CprState) {
        parts.replace(by: later.parts.all, without: later.gone?.parts ?? [])
    }

    /// Has these parts, and no others.
    mutating func keepParts(_ kept: [PartStates.Part]) { parts = PartStates(kept) }

    /// Makes this the state for a process that inherits nothing.
    /// - Returns: the descriptors that are to go along. Borrowed, as before.
    mutating func passAll() -> [Int32] {
        let all = ram.map(\.fd) + fds.map(\.fd)
        isSent = true
        for index in ram.indices { ram[index].fd = CprState.passed }
        fds = fds.map { PreservedFDs.Entry(name: $0.name, id: $0.id, fd: CprState.passed) }
        return all
    }

    /// Makes this the state of a guest that is kept, for a process that is started later.
    mutating func makeKept(_ memory: [RAMRecord], of kept: Kept) {
        self.kept = kept
        ram = memory
        // What is open, and whoever is at the other end, ends with this process.
        fds = []
        parts = PartStates()
        forgetExecution()
        _ = passAll()
    }

    /// Leaves out what only a process can use that this one executes.
    mutating func forgetExecution() {
        (link, mark, placeholder, timerSlack, endingChildren) = (nil, nil, nil, nil, [])
        // Another process has a sandbox of its own, or none.
        warden = nil
    }

    /// Puts the descriptors in their places that came along.
    /// - Parameter received: as many as `passedFDs`; owned by the state's from then on.
    mutating func adopt(_ received: [Int32]) {
        var rest = received[...]
        for index in ram.indices where ram[index].fd == CprState.passed { ram[index].fd = rest.removeFirst() }
        fds = fds.map { entry in
            guard entry.fd == CprState.passed else { return entry }
            return PreservedFDs.Entry(name: entry.name, id: entry.id, fd: rest.removeFirst())
        }
    }

    /// Which parts have been asked for.
    final class Asked { var parts: Set<String> = [] }
    let asked = Asked()

    /// What the process before handed over for a part; nil when nothing.
    /// - Throws: an error when it is damaged.
    public func part(_ name: String) throws(VMMError) -> StateReader? {
        asked.parts.insert(name)
        guard let part = parts.find(name) else { return nil }
        return try StateReader(section: name, version: part.version, payload: part.payload)
    }

    /// What of a state that came later holds for this process too.
    mutating func take(from later: CprState) {
        version = later.version
        times = later.times
        memoryIdentity = later.memoryIdentity
    }

    /// Descriptors of the hand-over itself, which the new program inherits.
    var ownDescriptors: [Int32] {
        (link.map { [$0.channel] } ?? []) + [checkpointFD, mark?.fd, warden].compactMap { $0 }
    }

    /// Takes the state over that the process before left, if there is one, and
    /// closes its memfd. The environment variable is removed and every
    /// descriptor named in the state gets FD_CLOEXEC back, so that nothing
    /// reaches any other child. Without the variable the memfd is looked for.
    /// - Throws: why the state cannot be used; the caller must end the process.
    public static func inherited() throws(VMMError) -> CprState? {
        let report = getenv(reportVariable).map { String(cString: $0) }
        unsetenv(reportVariable)
        // What is wrong from here on is reported, also if it is the state itself.
        if getenv(environmentVariable) != nil { HandoverLink.ofThisProcess = report.flatMap(reportLink) }
        var descriptor = try namedDescriptor()
        if descriptor == nil { descriptor = try findDescriptor() }
        guard let raw = descriptor else { return nil }
        let fd = OwnedFD(adopting: raw)
        guard lseek(fd.raw, 0, SEEK_SET) == 0 else {
            throw VMMError("\(environmentVariable)=\(raw) does not name a CPR state")
        }
        let bytes = try FD.readAll(fd.raw, limit: sizeLimit, from: "the CPR state")
        let state: CprState
        do throws(VMMError) {
            state = try CprState(parsing: bytes)
        } catch {
            throw error.prefixed("cannot use the CPR state")
        }
        var seen: Set<Int32> = [raw]
        var named = state.fds.map { ($0.name, $0.fd) } + state.ram.map { ($0.name, $0.fd) }
        if let link = state.link { named.append(("the channel", link.channel)) }
        if let fd = state.checkpointFD { named.append(("the checkpoint", fd)) }
        if let mark = state.mark { named.append(("the VM's mark", mark.fd)) }
        if let warden = state.warden { named.append(("the sandbox", warden)) }
        for (name, fd) in named {
            guard seen.insert(fd).inserted else {
                throw VMMError("cannot use the CPR state: fd \(fd) of '\(name)' occurs twice")
            }
            do throws(VMMError) {
                try FD.setCloseOnExec(fd, true)
            } catch {
                throw VMMError("cannot use the CPR state: fd \(fd) of '\(name)' is not open")
            }
        }
        DescriptorKind.addressesOfStandIns = state.addresses
        if let warden = state.warden { HostAccess.socket = warden }
        if let timerSlack = state.timerSlack, timerSlack > 0 { _ = cbaton_set_timer_slack(timerSlack) }
        HandoverLink.ofThisProcess = state.link
        if !state.isTrial { Placeholder.prepare(state.placeholder) }
        return state
    }

    /// For the environment, see `reportVariable`.
    var reportText: String? { link.map(CprState.reportText) }

    static func reportText(of link: HandoverLink) -> String { "\(link.channel):\(String(link.secret, radix: 16))" }

    /// - Returns: a link that can only report; nil when the text names no socket or pipe.
    private static func reportLink(_ text: String) -> HandoverLink? {
        let words = text.split(separator: ":")
        var status = stat()
        guard words.count == 2, let fd = Int32(words[0]), let secret = UInt64(words[1], radix: 16), fd > 2,
            fstat(fd, &status) == 0, [S_IFSOCK, S_IFIFO].contains(status.st_mode & S_IFMT),
            fcntl(fd, F_SETFD, FD_CLOEXEC) == 0
        else { return nil }
        return HandoverLink(channel: fd, secret: secret)
    }

    private static func namedDescriptor() throws(VMMError) -> Int32? {
        guard let text = getenv(environmentVariable).map({ String(cString: $0) }) else { return nil }
        unsetenv(environmentVariable)
        guard let raw = Int32(text), raw > 2, FD.isOpen(raw) else {
            throw VMMError(
                "\(environmentVariable)=\(text) does not name an open file descriptor",
                hint:
                    "This variable is set by cpr-exec only. If a prefix command closes file descriptors, leave it out.")
        }
        return raw
    }

    func encoded() -> [UInt8] {
        var container = SectionContainer(kind: .cprState)
        var general = StateWriter()
        general.put("mode", mode)
        general.put("version", BatonVersion.text, optional: true)
        times.put(into: &general)
        if let link {
            general.put("channel-fd", UInt64(link.channel))
            general.put("secret", link.secret)
        }
        if !endingChildren.isEmpty { general.put("helper-pids", endingChildren.map { UInt64($0) }, optional: true) }
        if let placeholder { general.put("placeholder-pid", UInt64(placeholder), optional: true) }
        if let callLimit { general.put("call-limit-ns", UInt64(bitPattern: callLimit), optional: true) }
        if let checkpointFD { general.put("checkpoint-fd", UInt64(checkpointFD)) }
        if checkpointFollows { general.put("checkpoint-follows", true) }
        if isSent { general.put("sent", true) }
        if isTrial { general.put("trial", true) }
        if let timerSlack { general.put("timer-slack-ns", UInt64(timerSlack), optional: true) }
        if let mark {
            general.put("mark-fd", UInt64(mark.fd), optional: true)
            general.put("mark-number", UInt64(mark.number), optional: true)
        }
        if let warden { general.put("sandbox-fd", UInt64(warden), optional: true) }
        if let memoryIdentity { general.put("memory-id", memoryIdentity, optional: true) }
        container.add("cpr", version: CprState.generalVersions.upperBound, general)
        var list = StateWriter()
        list.put("names", fds.map(\.name))
        list.put("ids", fds.map { UInt64(bitPattern: Int64($0.id)) })
        list.put("fds", fds.map { UInt64($0.fd) })
        container.add("fds", version: CprState.fdsVersions.upperBound, list)
        var blocks = StateWriter()
        blocks.put("count", UInt64(ram.count))
        for (index, record) in ram.enumerated() {
            blocks.put("\(index).name", record.name)
            blocks.put("\(index).used-length", UInt64(record.usedLength))
            blocks.put("\(index).max-length", UInt64(record.maxLength))
            blocks.put("\(index).alignment", UInt64(record.alignment))
            blocks.put("\(index).fd", UInt64(record.fd))
            CprState.identify(record.fd, "\(index).", in: &blocks)
        }
        container.add("ram", version: 1, blocks)
        // It does not change while an update is in hand, and is long.
        if gone == nil {
            var past = StateWriter()
            history.put(into: &past)
            container.add(UpdateHistory.sectionName, version: 1, optional: true, past)
        }
        if !addresses.isEmpty {
            var standIns = StateWriter()
            standIns.put("fds", addresses.keys.sorted().map { UInt64($0) })
            for (fd, address) in addresses { standIns.put("\(fd).address", bytes: address) }
            container.add(CprState.standInsSection, version: 1, optional: true, standIns)
        }
        if let gone {
            var changes = StateWriter()
            changes.put("fd-names", gone.fds.map(\.name))
            changes.put("fd-ids", gone.fds.map { UInt64(bitPattern: Int64($0.id)) })
            changes.put("parts", gone.parts)
            container.add(CprState.changesSection, version: 1, changes)
        }
        if let kept {
            var writer = StateWriter()
            kept.put(into: &writer)
            container.add(Kept.section, version: 1, writer)
        }
        for part in parts.all {
            container.add(
                SectionContainer.Section(
                    name: CprState.partPrefix + part.name, version: part.version, optional: true, payload: part.payload)
            )
        }
        return container.encoded()
    }

    /// Says which memory a descriptor is, for whoever reads the state.
    private static func identify(_ fd: Int32, _ prefix: String, in writer: inout StateWriter) {
        var status = stat()
        guard fd != passed, fstat(fd, &status) == 0 else { return }
        writer.put(prefix + "inode", UInt64(status.st_ino), optional: true)
        writer.put(prefix + "size", UInt64(status.st_size), optional: true)
        if let path = FD.path(fd) { writer.put(prefix + "file", path, optional: true) }
    }

    /// Parses and checks a state.
    init(parsing bytes: [UInt8]) throws(VMMError) {
        let container = try SectionContainer(kind: .cprState, parsing: bytes, name: "the CPR state")
        func reader(_ name: String, versions: ClosedRange<UInt32> = 1...1) throws(VMMError) -> StateReader {
            guard let section = container.section(name) else { throw VMMError("section '\(name)' is missing") }
            guard versions.contains(section.version) else {
                let known =
                    versions.count == 1
                    ? "version \(versions.lowerBound)"
                    : "versions \(versions.lowerBound) to \(versions.upperBound)"
                throw VMMError("section '\(name)' has version \(section.version), this VMM knows \(known)")
            }
            return try container.reader(section)
        }
        parts = PartStates(
            container.sections.filter { $0.name.hasPrefix(CprState.partPrefix) }.map {
                PartStates.Part(
                    name: String($0.name.dropFirst(CprState.partPrefix.count)), version: $0.version, payload: $0.payload
                )
            })
        let known = ["cpr", "fds", "ram", CprState.changesSection, Kept.section]
        for section in container.sections where !section.optional && !known.contains(section.name) {
            throw VMMError("section '\(section.name)' is unknown")
        }
        let fdNumbers: ClosedRange<UInt64> = 3...UInt64(Int32.max)
        let general = try reader("cpr", versions: CprState.generalVersions)
        mode = try general.string("mode")
        if general.has("version") { version = try general.string("version") }
        times = try UpdateTimes(from: general)
        if general.has("channel-fd") {
            link = HandoverLink(
                channel: Int32(try general.unsigned("channel-fd", in: fdNumbers)),
                secret: try general.unsigned("secret"))
        }
        if general.has("helper-pids") {
            endingChildren = try general.array("helper-pids", count: 0...EndingChildren.limit)
                .filter { (2...UInt64(Int32.max)).contains($0) }.map { pid_t($0) }
        }
        if general.has("placeholder-pid") {
            placeholder = pid_t(try general.unsigned("placeholder-pid", in: 1...UInt64(Int32.max)))
        }
        if general.has("call-limit-ns") {
            callLimit = Int64(try general.unsigned("call-limit-ns", in: 1...UInt64(Int64.max / 2)))
        }
        if general.has("checkpoint-fd") {
            checkpointFD = Int32(try general.unsigned("checkpoint-fd", in: fdNumbers))
        }
        if general.has("checkpoint-follows") { checkpointFollows = try general.bool("checkpoint-follows") }
        if general.has("sent") { isSent = try general.bool("sent") }
        if general.has("trial") { isTrial = try general.bool("trial") }
        if general.has("timer-slack-ns") {
            // A thread of a real-time policy has none.
            timerSlack = UInt(try general.unsigned("timer-slack-ns", in: 0...UInt64(Int64.max)))
        }
        if general.has("mark-fd") {
            mark = Mark(
                fd: Int32(try general.unsigned("mark-fd", in: fdNumbers)),
                number: UInt(try general.unsigned("mark-number", in: UpdateMark.numbers)))
        }
        if general.has("sandbox-fd") { warden = Int32(try general.unsigned("sandbox-fd", in: fdNumbers)) }
        if general.has("memory-id") { memoryIdentity = try general.string("memory-id") }
        try general.finish()
        if let section = container.section(UpdateHistory.sectionName), section.version == 1 {
            history = try UpdateHistory(from: try container.reader(section))
        }
        if let section = container.section(CprState.standInsSection), section.version == 1 {
            let standIns = try container.reader(section)
            for number in try standIns.array("fds", count: 0...CprState.fdLimit) {
                guard fdNumbers.contains(number) else { throw VMMError("fd \(number) of a stand-in is impossible") }
                addresses[Int32(number)] = try standIns.bytes(
                    "\(number).address", count: 0...MemoryLayout<sockaddr_storage>.size)
            }
            try standIns.finish()
        }

        if container.section(Kept.section) != nil { kept = try Kept(from: try reader(Kept.section)) }
        let limits = 0...CprState.fdLimit
        if container.section(CprState.changesSection) != nil {
            gone = try Gone(from: try reader(CprState.changesSection), limits: limits)
        }
        let list = try reader("fds", versions: CprState.fdsVersions)
        let (names, ids) = (try list.strings("names", count: limits), try list.array("ids", count: limits))
        let numbers = try list.array("fds", count: limits)
        guard names.count == ids.count, names.count == numbers.count else {
            throw VMMError("section 'fds' has \(names.count) names, \(ids.count) ids and \(numbers.count) fds")
        }
        fds = []
        fds.reserveCapacity(names.count)
        var keys: Set<PreservedFDs.Key> = []
        for ((name, id), number) in zip(zip(names, ids), numbers) {
            guard isSent ? number == 0 : fdNumbers.contains(number) || gone != nil && number == 0 else {
                throw VMMError("fd \(number) of '\(name)' is impossible")
            }
            let entry = PreservedFDs.Entry(name: name, id: Int(Int64(bitPattern: id)), fd: Int32(number))
            guard keys.insert(PreservedFDs.Key(name: name, id: entry.id)).inserted else {
                throw VMMError("fd '\(name)' id \(entry.id) occurs twice")
            }
            fds.append(entry)
        }
        try list.finish()

        let blocks = try reader("ram")
        ram = []
        var blockNames: Set<String> = []
        let page = UInt64(Mapping.pageSize)
        for index in 0..<(try blocks.unsigned("count", in: 0...1_000_000)) {
            let name = try blocks.string("\(index).name")
            let maxLength = try blocks.unsigned("\(index).max-length", in: page...(1 << 52))
            let usedLength = try blocks.unsigned("\(index).used-length", in: page...maxLength)
            let alignment = try blocks.unsigned("\(index).alignment", in: page...(1 << 40))
            guard usedLength % page == 0, maxLength % page == 0, alignment & (alignment - 1) == 0 else {
                throw VMMError("RAM block '\(name)' has impossible lengths or alignment")
            }
            guard blockNames.insert(name).inserted else { throw VMMError("RAM block '\(name)' occurs twice") }
            ram.append(
                RAMRecord(
                    name: name, usedLength: Int(usedLength), maxLength: Int(maxLength), alignment: Int(alignment),
                    fd: Int32(try blocks.unsigned("\(index).fd", in: isSent ? 0...0 : fdNumbers))))
        }
        try blocks.finish()
    }
}

extension CprState.Gone {
    fileprivate init(from reader: StateReader, limits: ClosedRange<Int>) throws(VMMError) {
        let names = try reader.strings("fd-names", count: limits)
        let ids = try reader.array("fd-ids", count: limits)
        guard names.count == ids.count else {
            throw VMMError("section '\(reader.section)' has \(names.count) names and \(ids.count) ids")
        }
        fds = zip(names, ids).map { PreservedFDs.Key(name: $0, id: Int(Int64(bitPattern: $1))) }
        parts = try reader.strings("parts", count: limits)
        try reader.finish()
    }
}
