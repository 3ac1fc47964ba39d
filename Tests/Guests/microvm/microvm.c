// A bare x86-64 guest of the microvm board that counts, as ../counter does for riscv64, and measures its exits. Starts
// by the PVH protocol, needs neither firmware nor interrupts, and keeps this page for a program outside that maps the
// RAM:
//   0x400000  magic "BATONCNT"
//   0x400008  the counter, stored last
//   0x400010  the checksum if the counter is even, at 0x400018 if it is odd
//   0x400030  set from outside: 1 to measure gaps
//   0x400038  the longest time between two steps since that is 1, in ticks of the time-stamp counter; may be set to 0
//             from outside
//   0x400040  the time-stamp counter in the last step
//   0x400048  1 since the first instruction
//   0x400050  set from outside: reads of a device to make, in place of steps; 0 again when they are made
//   0x400058  set from outside: the port to read a byte of, or the address of a word above all ports
//   0x400060  ticks that the reads took
//   0x400068  what the last one read
#define PAGE ((volatile u64 *)0x400000UL)
#define MAGIC 0x544e434e4f544142UL
#define MULTIPLIER 6364136223846793005UL
#define INCREMENT 1442695040888963407UL

#include "start.h"

static inline u64 ticks(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static void read_device(u64 place, u64 reads) {
    u64 before = ticks(), value = 0;
    if (place < 0x10000) {
        for (u64 left = reads; left; left--) {
            u8 byte;
            __asm__ volatile("inb %w1, %0" : "=a"(byte) : "d"((u32)place));
            value = byte;
        }
    } else {
        for (u64 left = reads; left; left--) value = *(volatile u32 *)place;
    }
    PAGE[12] = ticks() - before;
    PAGE[13] = value;
    PAGE[10] = 0;
}

_Noreturn void run(u64 cpu) {
    (void)cpu;
    u64 count = 0, sum = 0, before = 0;
    PAGE[1] = 0;
    PAGE[2] = 0;
    PAGE[3] = 0;
    PAGE[0] = MAGIC;
    // What is in RAM must be what this CPU put there one step ago; the guest stands still otherwise.
    while (PAGE[1] == count) {
        count += 1;
        sum = sum * MULTIPLIER + INCREMENT;
        PAGE[2 + (count & 1)] = sum;
        PAGE[1] = count;
        u64 now = ticks();
        PAGE[8] = now;
        if (PAGE[6]) {
            if (before && now - before > PAGE[7]) PAGE[7] = now - before;
            before = now;
        } else {
            before = 0;
        }
        u64 reads = PAGE[10];
        if (reads) {
            read_device(PAGE[11], reads);
            before = 0;
        }
    }
    for (;;) __asm__ volatile("hlt");
}
