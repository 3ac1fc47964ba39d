// A bare-metal guest that only counts. Position independent, without firmware
// services or a C library: runs in M-mode from the start of RAM (-bios none)
// and in S-mode from wherever a firmware puts it.
//
// It keeps this page, for a program outside that maps the RAM:
//   0x80400000  magic "BATONCNT"
//   0x80400008  the counter, stored last
//   0x80400010  the checksum if the counter is even, at 0x80400018 if it is odd
//   0x80400020  set from outside: the bytes of RAM from 0x80800000 to use, 0 for none
//   0x80400028  how often all of that was used: a store to each page, one a step
//   0x80400030  set from outside: 1 to measure gaps
//   0x80400038  the longest time between two steps since that is 1, in ticks of
//               the time counter (100 ns); may be set to 0 from outside
// The checksum is a linear congruential sequence, one element a step, so what
// it must be at any count can be computed without counting.
#include "bare.h"

#define PAGE ((volatile u64 *)0x80400000UL)
#define MAGIC 0x544e434e4f544142UL
#define MULTIPLIER 6364136223846793005UL
#define INCREMENT 1442695040888963407UL
#define STEPS_PER_LINE (1UL << 23)

_Noreturn static void mismatch(const char *what, u64 found, u64 expected) {
    text("\r\nbaton-demo: FAIL ");
    text(what);
    text(" found=");
    number_in(found, 16);
    text(" expected=");
    number_in(expected, 16);
    text("\r\n");
    for (;;) __asm__ volatile("wfi");
}

_Noreturn void run(void) {
    u64 count = 0, sum = 0, lines = 0, used = 0, before = 0;
    PAGE[1] = 0;
    PAGE[2] = 0;
    PAGE[3] = 0;
    PAGE[0] = MAGIC;
    for (;;) {
        for (u64 left = STEPS_PER_LINE; left; left--) {
            // What is in RAM must be what this hart put there one step ago.
            if (PAGE[1] != count) mismatch("counter", PAGE[1], count);
            count += 1;
            sum = sum * MULTIPLIER + INCREMENT;
            PAGE[2 + (count & 1)] = sum;
            PAGE[1] = count;
            if (PAGE[6]) {
                u64 now;
                __asm__ volatile("rdtime %0" : "=r"(now));
                if (before && now - before > PAGE[7]) PAGE[7] = now - before;
                before = now;
            } else {
                before = 0;
            }
            u64 use = PAGE[4];
            if (!use) continue;
            R64(0x80800000UL + used) = count;
            used += 4096;
            if (used >= use) {
                used = 0;
                PAGE[5] += 1;
            }
        }
        text("baton-demo: count=");
        number(count);
        text(" sum=");
        number_in(sum, 16);
        text(" mem=ok line=");
        number(++lines);
        text("\r\n");
    }
}

__asm__(".section .text.entry, \"ax\"\n"
        ".global _start\n"
        "_start:\n"
        // Other harts of the machine have nothing to do.
        "csrw sie, zero\n"
        "bnez a0, 1f\n"
        "lla sp, stack_top\n"
        "j run\n"
        "1: wfi\n"
        "j 1b\n");
