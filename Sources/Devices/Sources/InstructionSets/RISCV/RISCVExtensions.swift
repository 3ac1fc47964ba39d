/// What a hart has of the instruction set, a bit each: extensions by the names of `riscv,isa`, the modes of `satp`, and
/// PMP.
@frozen
public struct RISCVExtensions: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

    // MARK: Single letters

    @inlinable public static var i: Self { Self(rawValue: 1 << 0) }
    @inlinable public static var m: Self { Self(rawValue: 1 << 1) }
    @inlinable public static var a: Self { Self(rawValue: 1 << 2) }
    @inlinable public static var f: Self { Self(rawValue: 1 << 3) }
    @inlinable public static var d: Self { Self(rawValue: 1 << 4) }
    @inlinable public static var c: Self { Self(rawValue: 1 << 5) }
    /// Zba, Zbb and Zbs.
    @inlinable public static var b: Self { Self(rawValue: 1 << 6) }

    // MARK: Unprivileged extensions

    @inlinable public static var zic64b: Self { Self(rawValue: 1 << 7) }
    @inlinable public static var zicbom: Self { Self(rawValue: 1 << 8) }
    @inlinable public static var zicbop: Self { Self(rawValue: 1 << 9) }
    @inlinable public static var zicboz: Self { Self(rawValue: 1 << 10) }
    @inlinable public static var ziccamoa: Self { Self(rawValue: 1 << 11) }
    @inlinable public static var ziccif: Self { Self(rawValue: 1 << 12) }
    @inlinable public static var zicclsm: Self { Self(rawValue: 1 << 13) }
    @inlinable public static var ziccrse: Self { Self(rawValue: 1 << 14) }
    @inlinable public static var zicond: Self { Self(rawValue: 1 << 15) }
    @inlinable public static var zicntr: Self { Self(rawValue: 1 << 16) }
    @inlinable public static var zicsr: Self { Self(rawValue: 1 << 17) }
    @inlinable public static var zifencei: Self { Self(rawValue: 1 << 18) }
    @inlinable public static var zihintntl: Self { Self(rawValue: 1 << 19) }
    @inlinable public static var zihintpause: Self { Self(rawValue: 1 << 20) }
    @inlinable public static var zihpm: Self { Self(rawValue: 1 << 21) }
    @inlinable public static var zmmul: Self { Self(rawValue: 1 << 22) }
    @inlinable public static var za64rs: Self { Self(rawValue: 1 << 23) }
    @inlinable public static var zaamo: Self { Self(rawValue: 1 << 24) }
    @inlinable public static var zacas: Self { Self(rawValue: 1 << 25) }
    @inlinable public static var zalrsc: Self { Self(rawValue: 1 << 26) }
    @inlinable public static var zawrs: Self { Self(rawValue: 1 << 27) }
    @inlinable public static var zfa: Self { Self(rawValue: 1 << 28) }
    @inlinable public static var zfhmin: Self { Self(rawValue: 1 << 29) }
    @inlinable public static var zca: Self { Self(rawValue: 1 << 30) }
    @inlinable public static var zcb: Self { Self(rawValue: 1 << 31) }
    @inlinable public static var zcd: Self { Self(rawValue: 1 << 32) }
    @inlinable public static var zba: Self { Self(rawValue: 1 << 33) }
    @inlinable public static var zbb: Self { Self(rawValue: 1 << 34) }
    @inlinable public static var zbc: Self { Self(rawValue: 1 << 35) }
    @inlinable public static var zbs: Self { Self(rawValue: 1 << 36) }
    @inlinable public static var zkt: Self { Self(rawValue: 1 << 37) }

    // MARK: Privileged extensions

    @inlinable public static var ssccptr: Self { Self(rawValue: 1 << 38) }
    @inlinable public static var sscounterenw: Self { Self(rawValue: 1 << 39) }
    @inlinable public static var sstc: Self { Self(rawValue: 1 << 40) }
    @inlinable public static var sstvala: Self { Self(rawValue: 1 << 41) }
    @inlinable public static var sstvecd: Self { Self(rawValue: 1 << 42) }
    @inlinable public static var ssu64xl: Self { Self(rawValue: 1 << 43) }
    @inlinable public static var svade: Self { Self(rawValue: 1 << 44) }
    @inlinable public static var svadu: Self { Self(rawValue: 1 << 45) }
    @inlinable public static var svinval: Self { Self(rawValue: 1 << 46) }
    @inlinable public static var svnapot: Self { Self(rawValue: 1 << 47) }
    @inlinable public static var svpbmt: Self { Self(rawValue: 1 << 48) }
    @inlinable public static var svvptc: Self { Self(rawValue: 1 << 49) }

    // MARK: Not in `riscv,isa`

    @inlinable public static var sv39: Self { Self(rawValue: 1 << 50) }
    @inlinable public static var sv48: Self { Self(rawValue: 1 << 51) }
    @inlinable public static var sv57: Self { Self(rawValue: 1 << 52) }
    @inlinable public static var pmp: Self { Self(rawValue: 1 << 53) }
    /// hpmcounter3 to 31, which Zihpm has.
    @inlinable public static var hpmCounters: Self { Self(rawValue: 1 << 54) }
    @inlinable public static var translation: Self { [.sv39, .sv48, .sv57] }

    /// Bytes of a block of Zicbom, Zicbop and Zicboz.
    public static let cacheBlockSize: UInt32 = 64

    // MARK: Names

    /// An extension, and what is known of it.
    struct Entry: Sendable {
        let name: String
        let set: RISCVExtensions
        /// What must be there too.
        let needs: RISCVExtensions
        /// What it brings along and takes away.
        let implies: RISCVExtensions
        /// Whether `-cpu` has a property of that name.
        let isProperty: Bool

        init(
            _ name: String, _ set: RISCVExtensions, needs: RISCVExtensions = [], implies: RISCVExtensions = [],
            isProperty: Bool = true
        ) {
            (self.name, self.set, self.needs, self.implies, self.isProperty) = (name, set, needs, implies, isProperty)
        }
    }

    /// In the order of `riscv,isa`.
    static let letters = [
        Entry("i", .i, isProperty: false), Entry("m", .m, implies: .zmmul),
        Entry("a", .a, implies: [.zaamo, .zalrsc, .ziccamoa, .ziccrse, .za64rs]), Entry("f", .f),
        Entry("d", .d, needs: .f, implies: .zcd), Entry("c", .c, isProperty: false),
        Entry("b", .b, needs: [.zba, .zbb, .zbs]),
    ]
    /// In the order of `riscv,isa`.
    static let words = [
        Entry("zic64b", .zic64b, isProperty: false), Entry("zicbom", .zicbom), Entry("zicbop", .zicbop),
        Entry("zicboz", .zicboz), Entry("ziccamoa", .ziccamoa, isProperty: false),
        Entry("ziccif", .ziccif, isProperty: false), Entry("zicclsm", .zicclsm, isProperty: false),
        Entry("ziccrse", .ziccrse, isProperty: false), Entry("zicond", .zicond), Entry("zicntr", .zicntr),
        Entry("zicsr", .zicsr, isProperty: false), Entry("zifencei", .zifencei), Entry("zihintntl", .zihintntl),
        Entry("zihintpause", .zihintpause), Entry("zihpm", .zihpm, implies: .hpmCounters),
        Entry("zmmul", .zmmul, isProperty: false),
        Entry("za64rs", .za64rs, isProperty: false), Entry("zaamo", .zaamo, isProperty: false),
        Entry("zacas", .zacas, needs: .a), Entry("zalrsc", .zalrsc, isProperty: false),
        Entry("zawrs", .zawrs, needs: .a), Entry("zfa", .zfa, needs: .f), Entry("zfhmin", .zfhmin, needs: .f),
        Entry("zca", .zca, isProperty: false), Entry("zcb", .zcb), Entry("zcd", .zcd, isProperty: false),
        Entry("zba", .zba), Entry("zbb", .zbb), Entry("zbc", .zbc), Entry("zbs", .zbs), Entry("zkt", .zkt),
        Entry("ssccptr", .ssccptr, isProperty: false), Entry("sscounterenw", .sscounterenw, isProperty: false),
        Entry("sstc", .sstc), Entry("sstvala", .sstvala, isProperty: false),
        Entry("sstvecd", .sstvecd, isProperty: false), Entry("ssu64xl", .ssu64xl, isProperty: false),
        Entry("svade", .svade), Entry("svadu", .svadu), Entry("svinval", .svinval), Entry("svnapot", .svnapot),
        Entry("svpbmt", .svpbmt), Entry("svvptc", .svvptc),
    ]
    /// What `-cpu` names and `riscv,isa` does not.
    static let others = [
        Entry("sv39", .sv39), Entry("sv48", .sv48), Entry("sv57", .sv57), Entry("pmp", .pmp),
        Entry("hpm-counters", .hpmCounters, isProperty: false),
    ]
    static let entries = letters + words + others

    private func names(_ entries: [Entry]) -> [String] { entries.filter { contains($0.set) }.map(\.name) }

    /// Single letters, in the order of `riscv,isa`.
    public var letterNames: [String] { names(Self.letters) }
    /// Extensions with longer names, in the order of `riscv,isa`.
    public var wordNames: [String] { names(Self.words) }
    /// Everything, `sv48` and `pmp` with it.
    public var allNames: [String] { names(Self.entries) }

    /// - Returns: nil for a name that is none here.
    public init?(name: String) {
        guard let entry = Self.entries.first(where: { $0.name == name }) else { return nil }
        self = entry.set
    }
}
