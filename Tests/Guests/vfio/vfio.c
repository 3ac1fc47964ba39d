// A bare-metal guest for the device of Tests/VFIOSimulator: finds it on the
// bus, places its BARs, checks that they answer, has it count into a page and
// interrupt, and then waits for interrupts for ever. Prints
//   vfio: INTERRUPTS COUNT
// every 64 interrupts, and FAIL for what must not be. INTERRUPTS is one of
// MSIX, MSI (both need -machine aia=aplic-imsic) and INTX (which needs the PLIC).
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define UART ((volatile u8 *)0x10000000UL)
#define PLIC(offset) (*(volatile u32 *)(0x0c000000UL + (offset)))
#define CONFIG(slot, offset) (0x30000000UL + ((u64)(slot) << 15) + (offset))
#define R8(address) (*(volatile u8 *)(u64)(address))
#define R16(address) (*(volatile u16 *)(u64)(address))
#define R32(address) (*(volatile u32 *)(u64)(address))
#define R64(address) (*(volatile u64 *)(u64)(address))

enum { IMSIC = 0x24000000, BAR0 = 0x40000000, BAR2 = 0x40100000, SIZE = 0x10000, VECTORS = 4, LINE = 64 };

static u64 page[512] __attribute__((aligned(4096)));
static u64 seen[VECTORS + 1];

static void put(char c) {
    while (!(UART[5] & 0x20)) {}
    UART[0] = (u8)c;
}
static void text(const char *s) {
    while (*s) put(*s++);
}
static void number(u64 value) {
    char digits[20];
    unsigned count = 0;
    do digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count) put(digits[--count]);
}
_Noreturn static void fail(const char *what, u64 a, u64 b) {
    text("FAIL ");
    text(what);
    text(" ");
    number(a);
    text(" ");
    number(b);
    text("\n");
    for (;;) __asm__ volatile("wfi");
}

static u32 find(void) {
    for (u32 slot = 1; slot < 32; slot++) {
        if (R32(CONFIG(slot, 0)) == 0x56491234) return slot;
    }
    fail("no device", 0, 0);
}

static u32 capability(u32 slot, u8 id) {
    u32 at = R8(CONFIG(slot, 0x34));
    for (u32 steps = 0; at && steps < 48; steps++, at = R8(CONFIG(slot, at + 1))) {
        if (R8(CONFIG(slot, at)) == id) return at;
    }
    return 0;
}

static void place(u32 slot) {
    const u32 registers[] = {0x10, 0x18}, flags[] = {0, 0xc};
    const u64 places[] = {BAR0, BAR2};
    for (u32 i = 0; i < 2; i++) {
        u64 bar = CONFIG(slot, registers[i]);
        R32(bar) = ~0u;
        if (R32(bar) != ((u32)~(SIZE - 1) | flags[i])) fail("size of a BAR", i, R32(bar));
        R32(bar) = (u32)places[i];
    }
    R32(CONFIG(slot, 0x1c)) = 0;
    R16(CONFIG(slot, 4)) = 6;  // memory, bus master
}

static void check(u32 slot) {
    if (R32(BAR0) != 0x53465642) fail("magic", R32(BAR0), 0);
    // Mapped, beside the MSI-X table, and behind the pending bits.
    const u64 offsets[] = {0x1000, 0x7ff8, 0x9000, 0xfff8};
    for (u32 i = 0; i < 4; i++) {
        R64(BAR2 + offsets[i]) = 0x0123456789abcdefUL + i;
        if (R64(BAR2 + offsets[i]) != 0x0123456789abcdefUL + i) fail("BAR 2", offsets[i], R64(BAR2 + offsets[i]));
        R8(BAR2 + offsets[i] + 3) = 0x55;
        if (R32(BAR2 + offsets[i]) != (0x55abcdefu + i)) fail("BAR 2", offsets[i], R32(BAR2 + offsets[i]));
    }
    u32 power = capability(slot, 1);
    if (!power || R16(CONFIG(slot, power + 2)) != 3) fail("power management", power, R16(CONFIG(slot, power + 2)));
}

#define WRITE_CSR(csr, value) __asm__ volatile("csrw " #csr ", %0" ::"r"((u64)(value)))

static void start_interrupts(u32 slot) {
    WRITE_CSR(mie, 1 << 11);
#ifdef INTX
    u32 source = 0x20 + slot % 4;
    PLIC(4 * source) = 1;
    PLIC(0x2000 + source / 32 * 4) = 1u << source % 32;
    PLIC(0x200000) = 0;
#else
    WRITE_CSR(0x350, 0x70);
    WRITE_CSR(0x351, 1);
    WRITE_CSR(0x350, 0x72);
    WRITE_CSR(0x351, 0);
    WRITE_CSR(0x350, 0xc0);
    WRITE_CSR(0x351, 0x1fe);
#endif
#ifdef MSIX
    u32 at = capability(slot, 0x11);
    u32 control = R16(CONFIG(slot, at + 2));
    if (!at || (control & 0x7ff) != VECTORS - 1 || R32(CONFIG(slot, at + 4)) != 2) fail("MSI-X", at, control);
    for (u32 i = 0; i < VECTORS; i++) {
        R32(BAR2 + 16 * i) = IMSIC;
        R32(BAR2 + 16 * i + 4) = 0;
        R32(BAR2 + 16 * i + 8) = i + 1;
        R32(BAR2 + 16 * i + 12) = 0;
    }
    R16(CONFIG(slot, at + 2)) = 0x8000;
#endif
#ifdef MSI
    u32 at = capability(slot, 5);
    u32 control = R16(CONFIG(slot, at + 2));
    if (!at || (control >> 1 & 7) != 2) fail("MSI", at, control);
    R32(CONFIG(slot, at + 4)) = IMSIC;
    R32(CONFIG(slot, at + 8)) = 0;
    R16(CONFIG(slot, at + 12)) = 4;  // 4 to 7
    R16(CONFIG(slot, at + 2)) = 1 | 2 << 4;
#endif
}

// The number of the interrupt, or 0 for none.
static u64 claim(void) {
#ifdef INTX
    u32 source = PLIC(0x200004);
    if (!source) return 0;
    u32 asserted = R32(BAR0 + 0x14);
    R32(BAR0 + 0x18) = 1;
    PLIC(0x200004) = source;
    return asserted ? 1 : 0;
#else
    u64 top;
    __asm__ volatile("csrrw %0, 0x35c, zero" : "=r"(top)::"memory");
    u64 id = top >> 16;
#ifdef MSI
    if (id) id -= 3;
#endif
    if (id > VECTORS) fail("interrupt", id, 0);
    return id;
#endif
}

__attribute__((used)) static void run(void) {
    u32 slot = find();
    place(slot);
    check(slot);
    start_interrupts(slot);
    R64(BAR0 + 8) = (u64)page;
    R32(BAR0 + 0x10) = 3;
    u64 interrupts = 0, count = 0;
    for (;;) {
        u64 id = claim();
        if (!id) {
            __asm__ volatile("wfi");
            continue;
        }
        seen[id]++;
        u64 now = *(volatile u64 *)page;
        if (now < count || !now) fail("count", count, now);
        count = now;
        if (++interrupts % LINE) continue;
        for (u32 i = 1; i < 256; i++) {
            if (page[i]) fail("the page", i, page[i]);
        }
#ifndef INTX
        for (u32 i = 1; i <= VECTORS; i++) {
            if (interrupts >= 1024 && !seen[i]) fail("a vector is missing", i, interrupts);
        }
#endif
        text("vfio: ");
        number(interrupts);
        text(" ");
        number(count);
        text("\n");
    }
}

__asm__(".section .text.entry, \"ax\"\n"
        ".global _start\n"
        "_start:\n"
        "bnez a0, 1f\n"
        "lla sp, stack_top\n"
        "j run\n"
        "1: wfi\n"
        "j 1b\n");
