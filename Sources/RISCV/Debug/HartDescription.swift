/// gdb's description of a hart: features and numbers of registers, as QEMU has them.
///
/// Source: gdb's manual, "RISC-V Features"; names of CSRs from the privileged specification.
enum HartDescription {
    enum Register {
        case integer(Int)
        case programCounter
        case float(Int)
        /// The privilege mode, as if it were a register.
        case privilege
        case csr(Int)
    }

    static let programCounter = 32
    private static let firstFloat = 33
    private static let privilege = 65
    private static let firstCSR = 66
    private static let csrCount = 4096

    static func register(_ number: Int) -> Register? {
        switch number {
        case 0..<32: .integer(number)
        case programCounter: .programCounter
        case firstFloat..<privilege: .float(number - firstFloat)
        case privilege: .privilege
        case firstCSR..<firstCSR + csrCount: .csr(number - firstCSR)
        default: nil
        }
    }

    /// x0 to x31, and pc.
    static let cpuRegisters =
        ["zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1"]
        + (0...7).map { "a\($0)" } + (2...11).map { "s\($0)" } + (3...6).map { "t\($0)" } + ["pc"]

    private static let floatRegisters =
        (0...7).map { "ft\($0)" } + ["fs0", "fs1"] + (0...7).map { "fa\($0)" } + (2...11).map { "fs\($0)" }
        + (8...11).map { "ft\($0)" }

    /// The documents, with the CSRs that the hart has.
    static func documents(of hart: Hart) -> [(name: String, text: String)] {
        let features: [(name: String, text: String)] = [
            ("riscv-64bit-cpu.xml", cpu), ("riscv-64bit-fpu.xml", fpu), ("riscv-64bit-virtual.xml", virtual),
            ("riscv-csr.xml", csrs(of: hart)),
        ]
        let target =
            "<target><architecture>riscv:rv64</architecture>"
            + features.map { "<xi:include href=\"\($0.name)\"/>" }.joined() + "</target>"
        return [("target.xml", head("target") + target)] + features
    }

    /// gdb has one DTD for both kinds of documents.
    private static func head(_ type: String) -> String {
        "<?xml version=\"1.0\"?><!DOCTYPE \(type) SYSTEM \"gdb-target.dtd\">"
    }

    private static func feature(_ name: String, _ content: String) -> String {
        head("feature") + "<feature name=\"org.gnu.gdb.riscv.\(name)\">\(content)</feature>"
    }

    private static func register(_ name: String, _ number: Int, type: String) -> String {
        "<reg name=\"\(name)\" bitsize=\"64\" regnum=\"\(number)\" type=\"\(type)\"/>"
    }

    private static var cpu: String {
        let types = ["ra": "code_ptr", "pc": "code_ptr", "sp": "data_ptr", "gp": "data_ptr", "tp": "data_ptr"]
        return feature(
            "cpu",
            cpuRegisters.enumerated().map { register($1, $0, type: types[$1] ?? "int") }.joined())
    }

    private static var fpu: String {
        feature(
            "fpu",
            "<union id=\"riscv_double\"><field name=\"float\" type=\"ieee_single\"/>"
                + "<field name=\"double\" type=\"ieee_double\"/></union>"
                + floatRegisters.enumerated().map { register($1, firstFloat + $0, type: "riscv_double") }.joined())
    }

    private static var virtual: String { feature("virtual", register("priv", privilege, type: "int")) }

    private static func csrs(of hart: Hart) -> String {
        feature(
            "csr",
            csrNames.filter { hart.debugCSR($0.number) != nil }
                .map { register($0.name, firstCSR + $0.number, type: "int") }.joined())
    }

    /// The CSRs that RISC-V harts may have, by number.
    private static var csrNames: [(number: Int, name: String)] {
        var names = plainNames.map { (number: $0.value, name: $0.key) }
        for index in 3...31 {
            names.append((0xb00 + index, "mhpmcounter\(index)"))
            names.append((0xc00 + index, "hpmcounter\(index)"))
            names.append((0x320 + index, "mhpmevent\(index)"))
        }
        for index in 0...15 {
            if index % 2 == 0 { names.append((0x3a0 + index, "pmpcfg\(index)")) }
            names.append((0x3b0 + index, "pmpaddr\(index)"))
        }
        return names.sorted { $0.number < $1.number }
    }

    private static let plainNames = [
        "fflags": 0x001, "frm": 0x002, "fcsr": 0x003,
        "vstart": 0x008, "vxsat": 0x009, "vxrm": 0x00a, "vcsr": 0x00f, "vl": 0xc20, "vtype": 0xc21, "vlenb": 0xc22,
        "seed": 0x015, "cycle": 0xc00, "time": 0xc01, "instret": 0xc02,
        "sstatus": 0x100, "sie": 0x104, "stvec": 0x105, "scounteren": 0x106, "senvcfg": 0x10a, "sstateen0": 0x10c,
        "sscratch": 0x140, "sepc": 0x141, "scause": 0x142, "stval": 0x143, "sip": 0x144, "stimecmp": 0x14d,
        "scountovf": 0xda0, "satp": 0x180,
        "hstatus": 0x600, "hedeleg": 0x602, "hideleg": 0x603, "hie": 0x604, "htimedelta": 0x605, "hcounteren": 0x606,
        "hgeie": 0x607, "henvcfg": 0x60a, "htval": 0x643, "hip": 0x644, "hvip": 0x645, "htinst": 0x64a,
        "hgatp": 0x680, "hgeip": 0xe12,
        "vsstatus": 0x200, "vsie": 0x204, "vstvec": 0x205, "vsscratch": 0x240, "vsepc": 0x241, "vscause": 0x242,
        "vstval": 0x243, "vsip": 0x244, "vstimecmp": 0x24d, "vsatp": 0x280,
        "mvendorid": 0xf11, "marchid": 0xf12, "mimpid": 0xf13, "mhartid": 0xf14, "mconfigptr": 0xf15,
        "mstatus": 0x300, "misa": 0x301, "medeleg": 0x302, "mideleg": 0x303, "mie": 0x304, "mtvec": 0x305,
        "mcounteren": 0x306, "menvcfg": 0x30a, "mstateen0": 0x30c, "mcountinhibit": 0x320,
        "mscratch": 0x340, "mepc": 0x341, "mcause": 0x342, "mtval": 0x343, "mip": 0x344, "mtinst": 0x34a,
        "mtval2": 0x34b, "mseccfg": 0x747, "mcycle": 0xb00, "minstret": 0xb02,
        "tselect": 0x7a0, "tdata1": 0x7a1, "tdata2": 0x7a2, "tdata3": 0x7a3, "tinfo": 0x7a4,
    ]
}
