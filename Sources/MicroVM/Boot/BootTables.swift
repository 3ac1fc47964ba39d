import BatonRuntime

/// What the CPU needs in memory to be in protected or long mode: segment descriptors and page tables.
enum BootTables {
    /// Four descriptors: two unused, flat code (of 64 bits, or of 32) and flat data, as `X86StartState` and Linux
    /// (__BOOT_CS, __BOOT_DS) have their selectors.
    static func descriptors(long: Bool) -> [UInt8] {
        let flatCode: UInt64 = long ? 0x00af_9b00_0000_ffff : 0x00cf_9b00_0000_ffff
        let flatData: UInt64 = 0x00cf_9300_0000_ffff
        return [0, 0, flatCode, flatData].flatMap { littleEndianBytes($0) }
    }

    private static let pageSize: UInt64 = 4096
    private static let presentWritable: UInt64 = 0b11
    private static let largePage: UInt64 = 1 << 7

    /// Bytes of `identityMap`.
    static let identityMapSize = 6 * Int(pageSize)

    /// Page tables that map the first 4 GiB to themselves with pages of 2 MiB, which every CPU in long mode has: the
    /// top table, the next, and four for 1 GiB each.
    /// - Parameter address: where they will be.
    static func identityMap(at address: UInt64) -> [UInt8] {
        var entries = [UInt64](repeating: 0, count: identityMapSize / 8)
        entries[0] = (address + pageSize) | presentWritable
        for index in 0..<4 { entries[512 + index] = (address + pageSize * UInt64(2 + index)) | presentWritable }
        for index in 0..<2048 { entries[1024 + index] = UInt64(index) << 21 | presentWritable | largePage }
        return entries.flatMap { littleEndianBytes($0) }
    }
}
