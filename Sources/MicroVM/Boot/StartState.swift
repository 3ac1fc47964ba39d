/// What the boot CPU starts with. General registers that are not here are 0.
public struct StartState: Equatable {
    public enum Mode { case real, protected, long }

    /// A segment register with its descriptor. All are present, of privilege level 0.
    public struct Segment: Equatable {
        public var selector: UInt16
        public var base: UInt64 = 0
        /// The last byte's offset, whatever the granularity.
        public var limit: UInt32 = 0xffff_ffff
        /// The descriptor's four type bits.
        public var type: UInt8
        /// Code or data (S), not a system segment.
        public var isCodeOrData = true
        /// 64-bit code (L).
        public var isLong = false
        /// 32-bit code or data (D/B).
        public var is32Bit = false
        /// The descriptor counts the limit in pages (G).
        public var hasPageGranularity = true
    }

    public struct DescriptorTable: Equatable {
        public var base: UInt64
        /// Bytes less 1.
        public var limit: UInt16
    }

    public var mode: Mode
    public var rip: UInt64
    /// The zero page, in long mode.
    public var rsi: UInt64 = 0
    /// The start info, in protected mode.
    public var rbx: UInt64 = 0
    /// Interrupts are off.
    public var rflags: UInt64 = 2
    public var cr0: UInt64
    public var cr3: UInt64 = 0
    public var cr4: UInt64 = 0
    public var efer: UInt64 = 0
    public var gdt: DescriptorTable
    /// No interrupt or exception can be taken before the guest has a table of its own.
    public var idt = DescriptorTable(base: 0, limit: 0)
    public var cs: Segment
    /// DS, ES, FS, GS and SS.
    public var data: Segment
    /// The task register; its descriptor is not in the table.
    public var tr: Segment

    private static let protectionEnabled: UInt64 = 1
    private static let extensionType: UInt64 = 1 << 4
    private static let paging: UInt64 = 1 << 31
    private static let physicalAddressExtension: UInt64 = 1 << 5
    private static let longModeEnabledAndActive: UInt64 = 1 << 8 | 1 << 10

    private static let busyTask32: UInt8 = 11
    private static let readableCode: UInt8 = 11
    private static let writableData: UInt8 = 3

    /// The state that Linux asks for ("64-bit Boot Protocol" in Documentation/arch/x86/boot.rst).
    static func longMode(
        entry: UInt64, zeroPage: UInt64, pageTables: UInt64, gdt: DescriptorTable
    ) -> StartState {
        StartState(
            mode: .long, rip: entry, rsi: zeroPage, cr0: protectionEnabled | extensionType | paging, cr3: pageTables,
            cr4: physicalAddressExtension, efer: longModeEnabledAndActive, gdt: gdt,
            cs: Segment(selector: BootTables.code, type: readableCode, isLong: true),
            data: Segment(selector: BootTables.data, type: writableData, is32Bit: true),
            tr: Segment(selector: 0, limit: 0x67, type: busyTask32, isCodeOrData: false, hasPageGranularity: false))
    }

    /// The state of PVH (docs/misc/pvh.pandoc of Xen).
    static func protectedMode(entry: UInt64, startInfo: UInt64, gdt: DescriptorTable) -> StartState {
        StartState(
            mode: .protected, rip: entry, rbx: startInfo, cr0: protectionEnabled | extensionType, gdt: gdt,
            cs: Segment(selector: BootTables.code, type: readableCode, is32Bit: true),
            data: Segment(selector: BootTables.data, type: writableData, is32Bit: true),
            tr: Segment(selector: 0, limit: 0x67, type: busyTask32, isCodeOrData: false, hasPageGranularity: false))
    }

    /// The state after a reset: 16 bytes below 4 GiB (Intel SDM volume 3, 10.1.4).
    static let realMode: StartState = {
        let noExtension: UInt64 = 0x6000_0010
        return StartState(
            mode: .real, rip: 0xfff0, cr0: noExtension, gdt: DescriptorTable(base: 0, limit: 0xffff),
            idt: DescriptorTable(base: 0, limit: 0xffff),
            cs: Segment(
                selector: 0xf000, base: 0xffff_0000, limit: 0xffff, type: readableCode, hasPageGranularity: false),
            data: Segment(selector: 0, limit: 0xffff, type: writableData, hasPageGranularity: false),
            tr: Segment(selector: 0, limit: 0xffff, type: busyTask32, isCodeOrData: false, hasPageGranularity: false))
    }()
}
