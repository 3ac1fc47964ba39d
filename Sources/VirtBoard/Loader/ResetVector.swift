/// The code at the start of the boot ROM and what firmware finds there: the
/// hart's number in a0, the device tree in a1, and OpenSBI's `fw_dynamic_info`
/// in a2 (OpenSBI, include/sbi/fw_dynamic.h, version 2).
struct ResetVector {
    /// Where the harts go from the ROM.
    var start: UInt64
    var deviceTree: UInt64
    /// Where firmware goes in S-mode; 0 when there is no kernel.
    var next: UInt64

    static let base: UInt64 = 0x1000

    private static let magic: UInt64 = 0x4942_534f
    private static let supervisorMode: UInt64 = 1

    /// The ROM's first bytes.
    var bytes: [UInt8] {
        // The words of data follow the six instructions.
        let code: [UInt32] = [
            0x0000_0297,  // auipc t0, 0
            0x0282_8613,  // addi  a2, t0, 40
            0xf140_2573,  // csrr  a0, mhartid
            0x0202_b583,  // ld    a1, 32(t0)
            0x0182_b283,  // ld    t0, 24(t0)
            0x0002_8067,  // jr    t0
        ]
        let data: [UInt64] = [
            start, deviceTree,
            // Magic, version, next_addr, next_mode, options, boot_hart.
            ResetVector.magic, 2, next, ResetVector.supervisorMode, 0, 0,
        ]
        return code.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
            + data.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }
}
