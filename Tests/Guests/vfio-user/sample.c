// A bare-metal guest for libvfio-user's sample servers: with GPIO for
// gpio-pci-idio-16, of which each write counts, with SERVER for server. Prints
//   sample: ROUNDS
// every 64 rounds.
#include "bare.h"

enum { IO = 0x03000000, PORT = 0x4000, ROUNDS = 64 };

static u32 find(u32 id) {
    for (u32 slot = 1; slot < 32; slot++) {
        if (R32(CONFIG(slot, 0)) == id) return slot;
    }
    fail("no device", id, 0);
}

// Places an I/O BAR, and says where it is.
static u64 place(u32 slot, u32 bar, u32 size, u32 port) {
    u64 place = CONFIG(slot, 0x10 + 4 * bar);
    R32(place) = ~0u;
    if (R32(place) != (~(size - 1) | 1)) fail("size of a BAR", bar, R32(place));
    R32(place) = port;
    R16(CONFIG(slot, 4)) = 1;
    return IO + port;
}

static void said(u64 rounds) {
    if (rounds % ROUNDS) return;
    text("sample: ");
    number(rounds);
    text("\n");
}

#ifdef GPIO
// A pin's input is up when its output has been up a multiple of three times. A
// write that is lost or done twice shows for ever.
static void run_sample(void) {
    u32 slot = find(0x0dc8494f);
    u64 base = place(slot, 2, 256, PORT);
    u32 counts[16] = {0};
    for (u64 rounds = 1;; rounds++) {
        for (u32 half = 0; half < 2; half++) {
            u8 up = (u8)(rounds * 37 >> half), expected = 0;
            R8(base + 4 * half) = up;
            for (u32 pin = 0; pin < 8; pin++) {
                counts[8 * half + pin] += up >> pin & 1;
                if (counts[8 * half + pin] % 3 == 0) expected |= (u8)(1 << pin);
            }
            u8 is = R8(base + 4 * half + 1);
            if (is != expected) fail("pins", is, expected);
        }
        said(rounds);
    }
}
#else
static void run_sample(void) {
    u32 slot = find(0xbeefdead);
    u64 clock = place(slot, 0, 8, PORT), memory = place(slot, 1, 0x4000, 0), last = 0;
    for (u64 rounds = 1;; rounds++) {
        R64(memory) = rounds * 0x9e3779b97f4a7c15UL;
        if (R64(memory) != rounds * 0x9e3779b97f4a7c15UL) fail("memory", rounds, R64(memory));
        // Behind the end of the region, in what makes it a power of two.
        if (R32(memory + 0x3000) != ~0u) fail("nothing", rounds, R32(memory + 0x3000));
        u64 now = R64(clock);
        if (now < last || now == ~0UL) fail("clock", last, now);
        last = now;
        said(rounds);
    }
}
#endif

__attribute__((used)) static void run(void) { run_sample(); }

ENTER_RUN;
