import Testing

/// With NX set, double-precision arithmetic is the host's where that is exact
/// in result and flags; with NX clear it is SoftFloat's.
@Suite("Host arithmetic")
struct HostArithmeticTests {
    @Test(
        "gives what SoftFloat gives",
        arguments: [
            "fadd.d fa2, fa0, fa1", "fsub.d fa2, fa0, fa1", "fmul.d fa2, fa0, fa1", "fdiv.d fa2, fa0, fa1",
            "fsqrt.d fa2, fa0", "fmadd.d fa2, fa0, fa1, fa0", "fmsub.d fa2, fa0, fa1, fa1",
            "fnmadd.d fa2, fa0, fa1, fa0", "fnmsub.d fa2, fa0, fa1, fa1", "flt.d a2, fa0, fa1", "fle.d a2, fa0, fa1",
            "feq.d a2, fa0, fa1", "fsgnj.d fa2, fa0, fa1", "fmv.d.x fa2, a2", "fmv.x.d a2, fa1",
        ])
    func agrees(_ instruction: String) throws {
        let pairs = 20_000
        let machine = try TestMachine(
            assembly: """
                    li t0, 0x6000
                    csrs mstatus, t0
                    li s0, 0x80200000
                    li s1, \(pairs)
                    li a0, 1
                1:  fld fa0, 0(s0)
                    fld fa1, 8(s0)
                    fmv.d.x fa2, x0
                    li a2, 7
                    csrwi fflags, 0
                    \(instruction)
                    csrr t0, fflags
                    fmv.x.d t1, fa2
                    add t1, t1, a2
                    fmv.d.x fa2, x0
                    li a2, 7
                    csrwi fflags, 1
                    \(instruction)
                    csrr t2, fflags
                    fmv.x.d t3, fa2
                    add t3, t3, a2
                    ori t0, t0, 1
                    bne t0, t2, 2f
                    bne t1, t3, 2f
                    addi s0, s0, 16
                    addi s1, s1, -1
                    bnez s1, 1b
                    \(TestMachine.finish("a0"))
                2:  \(TestMachine.finish("s0"))
                """)
        var random = SystemRandomNumberGenerator()
        let special: [UInt64] = [
            0, 1 << 63, 1, 0x000f_ffff_ffff_ffff, 0x0010_0000_0000_0000, 0x7fef_ffff_ffff_ffff, 0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000, 0x7ff8_0000_0000_0000, 0x7ff0_0000_0000_0001, 0x3ff0_0000_0000_0000,
            0x0020_0000_0000_0000, 0x001f_ffff_ffff_ffff, 0x3ca0_0000_0000_0000,
        ]
        for index in 0..<UInt64(2 * pairs) {
            let any = random.next()
            // All kinds: special, of any size, and near 1 or near the smallest.
            let value =
                switch any & 3 {
                case 0: special[Int(random.next() % UInt64(special.count))]
                case 1: random.next()
                case 2: random.next() & 0x800f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000 + (any >> 8 & 3) << 52
                default: random.next() & 0x801f_ffff_ffff_ffff + (any >> 8 & 3) << 52
                }
            machine[0x8020_0000 + index * 8] = value
        }
        let result = try machine.runUntilDone()
        #expect(
            result == 1,
            "\(instruction) differs for \(String(machine[result == 1 ? TestMachine.base : result], radix: 16))")
    }
}
