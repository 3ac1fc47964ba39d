// A bare-metal guest for the devices of Tests/VFIOSimulator: finds them on the
// bus, places their BARs, checks that they answer, looks at capabilities and
// ROM, has each count into a page and interrupt, and then waits for interrupts
// for ever. Prints
//   vfioD: INTERRUPTS COUNT
// every 64 interrupts of device D (0 is left out), and FAIL for what must not
// be. How is one of MSIX, MSI (both need -machine aia=aplic-imsic) and INTX
// (which needs the PLIC).
#include "bare.h"

enum { IMSIC = 0x24000000, BARS = 0x40000000, SIZE = 0x10000, VECTORS = 4, LINE = 64, DEVICES = 4 };
// Each device has 1 MiB: BAR 0, BAR 2 and the ROM.
enum { BAR2 = 0x40000, ROM = 0x80000, EACH = 0x100000 };

struct device {
    u32 slot, source;
    u64 bars, interrupts, count;
    u64 seen[VECTORS];
};
static u64 pages[DEVICES][512] __attribute__((aligned(4096)));
static struct device devices[DEVICES];
static u32 device_count;

static void find(void) {
    // A reset leaves memory as it was.
    device_count = 0;
    volatile u64 *state = (volatile u64 *)devices;
    for (u32 i = 0; i < sizeof devices / 8; i++) state[i] = 0;
    for (u32 slot = 1; slot < 32; slot++) {
        if (R32(CONFIG(slot, 0)) != 0x56491234) continue;
        if (device_count == DEVICES) fail("too many devices", slot, 0);
        devices[device_count].slot = slot;
        devices[device_count].bars = BARS + (u64)device_count * EACH;
        device_count++;
    }
    if (!device_count) fail("no device", 0, 0);
}

static u32 capability(u32 slot, u8 id) {
    u32 at = R8(CONFIG(slot, 0x34));
    for (u32 steps = 0; at && steps < 48; steps++, at = R8(CONFIG(slot, at + 1))) {
        if (R8(CONFIG(slot, at)) == id) return at;
    }
    return 0;
}

static void place(const struct device *d) {
    const u32 registers[] = {0x10, 0x18}, flags[] = {0, 0xc};
    const u64 places[] = {d->bars, d->bars + BAR2};
    for (u32 i = 0; i < 2; i++) {
        u64 bar = CONFIG(d->slot, registers[i]);
        R32(bar) = ~0u;
        if (R32(bar) != ((u32)~(SIZE - 1) | flags[i])) fail("size of a BAR", i, R32(bar));
        R32(bar) = (u32)places[i];
    }
    R32(CONFIG(d->slot, 0x1c)) = 0;
    R16(CONFIG(d->slot, 4)) = 6;  // memory, bus master
}

static void check(const struct device *d) {
    if (R32(d->bars) != 0x53465642) fail("magic", R32(d->bars), 0);
    // Mapped, beside the MSI-X table, and behind the pending bits.
    const u64 offsets[] = {0x1000, 0x7ff8, 0x9000, 0xfff8};
    for (u32 i = 0; i < 4; i++) {
        u64 at = d->bars + BAR2 + offsets[i];
        R64(at) = 0x0123456789abcdefUL + i;
        if (R64(at) != 0x0123456789abcdefUL + i) fail("BAR 2", offsets[i], R64(at));
        R8(at + 3) = 0x55;
        if (R32(at) != (0x55abcdefu + i)) fail("BAR 2", offsets[i], R32(at));
    }
    u32 power = capability(d->slot, 1);
    if (!power || R16(CONFIG(d->slot, power + 2)) != 3) {
        fail("power management", power, R16(CONFIG(d->slot, power + 2)));
    }
}

// Prints the ids of the extended capabilities, after PCI Express' type.
static void show_extended(u32 slot) {
    u32 express = capability(slot, 0x10);
    text("extended:");
    if (express) {
        text(" type ");
        number(R16(CONFIG(slot, express + 2)) >> 4 & 15);
        if (R32(CONFIG(slot, express + 0xc)) || R32(CONFIG(slot, express + 0x2c))) fail("link", express, 0);
    }
    u32 first = R32(CONFIG(slot, 0x100));
    u32 at = first && first != ~0u ? 0x100 : 0;
    for (u32 steps = 0; at && steps < 64; steps++) {
        u32 header = R32(CONFIG(slot, at));
        text(" ");
        number(header & 0xffff);
        if ((header & 0xffff) == 3 && R32(CONFIG(slot, at + 4)) != 0x55667788) fail("serial number", at, 0);
        if ((header & 0xffff) == 0x15) {
            R32(CONFIG(slot, at + 4)) = ~0u;
            R32(CONFIG(slot, at + 8)) = ~0u;
            u32 sizes = R32(CONFIG(slot, at + 4)), control = R32(CONFIG(slot, at + 8));
            if (sizes != 1u << 5 || control != (2 | 1 << 5 | 1 << 8)) fail("resizable BAR", sizes, control);
        }
        if ((header & 0xffff) == 0xb) {
            R32(CONFIG(slot, at + 8)) = 0x600df00d;
            if (R32(CONFIG(slot, at + 8)) != 0x600df00d) fail("vendor specific", at, R32(CONFIG(slot, at + 8)));
        }
        R32(CONFIG(slot, at)) = 0;
        if (R32(CONFIG(slot, at)) != header) fail("a header", at, R32(CONFIG(slot, at)));
        at = header >> 20;
    }
    // What is hidden (SR-IOV) is not there, and cannot be written.
    R32(CONFIG(slot, 0x164)) = 1;
    if (first && first != ~0u && R32(CONFIG(slot, 0x164))) fail("SR-IOV", R32(CONFIG(slot, 0x164)), 0);
    text("\n");
}

// Prints the ROM's size and the sum of its bytes.
static void show_rom(const struct device *d) {
    u64 bar = CONFIG(d->slot, 0x30);
    R32(bar) = ~1u;
    u32 size = ~(R32(bar) & ~0x7ffu) + 1;
    text("rom: ");
    number(size);
    if (size) {
        u64 start = d->bars + ROM, sum = 0;
        R32(bar) = (u32)start;
        // Off: nothing is there.
        if (R32(start) != ~0u) fail("a ROM that is off", R32(start), 0);
        R32(bar) = (u32)start | 1;
        for (u32 i = 0; i < size; i++) sum += R8(start + i);
        if (R64(start + size - 8) >> 32 != R32(start + size - 4)) fail("the ROM's end", size, 0);
        R32(start) = 0;
        text(" ");
        number(R16(start));
        text(" ");
        number(sum);
        R32(bar) = 0;
    }
    text("\n");
}

#define WRITE_CSR(csr, value) __asm__ volatile("csrw " #csr ", %0" ::"r"((u64)(value)))

// Of MSI and MSI-X: each device has four of the IMSIC's.
static u32 first_id(u32 index) { return VECTORS * (index + 1); }

static void start_cpu(void) {
    WRITE_CSR(mie, 1 << 11);
#ifdef INTX
    PLIC(0x200000) = 0;
#else
    WRITE_CSR(0x350, 0x70);
    WRITE_CSR(0x351, 1);
    WRITE_CSR(0x350, 0x72);
    WRITE_CSR(0x351, 0);
    WRITE_CSR(0x350, 0xc0);
    WRITE_CSR(0x351, 0xfffff0);
#endif
}

static void start_interrupts(u32 index) {
    struct device *d = &devices[index];
#ifdef INTX
    d->source = 0x20 + d->slot % 4;
    PLIC(4 * d->source) = 1;
    PLIC(0x2000 + d->source / 32 * 4) |= 1u << d->source % 32;
#endif
#ifdef MSIX
    u32 at = capability(d->slot, 0x11);
    u32 control = R16(CONFIG(d->slot, at + 2));
    if (!at || (control & 0x7ff) != VECTORS - 1 || R32(CONFIG(d->slot, at + 4)) != 2) fail("MSI-X", at, control);
    for (u32 i = 0; i < VECTORS; i++) {
        u64 entry = d->bars + BAR2 + 16 * i;
        R32(entry) = IMSIC;
        R32(entry + 4) = 0;
        R32(entry + 8) = first_id(index) + i;
        R32(entry + 12) = 0;
    }
    R16(CONFIG(d->slot, at + 2)) = 0x8000;
#endif
#ifdef MSI
    u32 at = capability(d->slot, 5);
    u32 control = R16(CONFIG(d->slot, at + 2));
    if (!at || (control >> 1 & 7) != 2) fail("MSI", at, control);
    R32(CONFIG(d->slot, at + 4)) = IMSIC;
    R32(CONFIG(d->slot, at + 8)) = 0;
    R16(CONFIG(d->slot, at + 12)) = (u16)first_id(index);
    R16(CONFIG(d->slot, at + 2)) = 1 | 2 << 4;
#endif
}

// Which device has interrupted, and its vector; false for none.
static int claim(u32 *index, u32 *vector) {
#ifdef INTX
    u32 source = PLIC(0x200004);
    if (!source) return 0;
    *vector = 0;
    u32 asserted = 0;
    for (u32 i = 0; i < device_count; i++) {
        if (devices[i].source != source) continue;
        *index = i;
        asserted = R32(devices[i].bars + 0x14);
        R32(devices[i].bars + 0x18) = 1;
    }
    PLIC(0x200004) = source;
    return asserted != 0;
#else
    u64 top;
    __asm__ volatile("csrrw %0, 0x35c, zero" : "=r"(top)::"memory");
    u32 id = (u32)(top >> 16);
    if (!id) return 0;
    if (id < VECTORS || id >= first_id(device_count)) fail("interrupt", id, 0);
    *index = id / VECTORS - 1;
    *vector = id % VECTORS;
    return 1;
#endif
}

static void interrupted(u32 index, u32 vector) {
    struct device *d = &devices[index];
    volatile u64 *page = pages[index];
    d->seen[vector]++;
    u64 now = page[0];
    if (now < d->count || !now) fail("count", d->count, now);
    d->count = now;
    if (++d->interrupts % LINE) return;
    for (u32 i = 1; i < 512; i++) {
        if (page[i]) fail("the page", i, page[i]);
    }
#ifndef INTX
    for (u32 i = 0; i < VECTORS; i++) {
        if (d->interrupts >= 1024 && !d->seen[i]) fail("a vector is missing", i, d->interrupts);
    }
#endif
    text("vfio");
    if (index) number(index);
    text(": ");
    number(d->interrupts);
    text(" ");
    number(d->count);
    text("\n");
}

__attribute__((used)) static void run(void) {
    find();
    start_cpu();
    for (u32 i = 0; i < device_count; i++) {
        struct device *d = &devices[i];
        place(d);
        check(d);
        show_extended(d->slot);
        show_rom(d);
        start_interrupts(i);
    }
    for (u32 i = 0; i < device_count; i++) {
        R64(devices[i].bars + 8) = (u64)pages[i];
        R32(devices[i].bars + 0x10) = 3;
    }
    for (;;) {
        u32 index = 0, vector = 0;
        if (claim(&index, &vector)) interrupted(index, vector);
        else __asm__ volatile("wfi");
    }
}

ENTER_RUN;
