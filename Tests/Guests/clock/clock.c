// A bare-metal guest in M-mode that sleeps 10 ms at a time, by its timer, and
// keeps in this page what its clocks show when it wakes:
//   0x80400000  magic "BATONCNT"
//   0x80400008  how often it has woken, stored last
//   0x80400010  mtime, in ticks of 100 ns
//   0x80400018  the real-time clock, in ns
//   0x80400020  the longest that it has woken too late, in ticks; a program outside may clear it
//   0x80400028  mtime when it did
//   0x80400030  how often a clock has gone back
typedef unsigned long u64;

#define PAGE ((volatile u64 *)0x80400000UL)
#define MAGIC 0x544e434e4f544142UL
#define MTIMECMP (*(volatile u64 *)0x2004000UL)
#define MTIME (*(volatile u64 *)0x200bff8UL)
#define RTC ((volatile unsigned *)0x101000UL)
#define STEP 100000UL

static u64 rtc(void) {
    u64 low = RTC[0];
    return (u64)RTC[1] << 32 | low;
}

_Noreturn void run(void) {
    u64 time = 0, wall = 0;
    for (unsigned i = 1; i < 7; i++) PAGE[i] = 0;
    PAGE[0] = MAGIC;
    for (;;) {
        u64 due = MTIME + STEP;
        MTIMECMP = due;
        for (;;) {
            u64 pending;
            __asm__ volatile("csrr %0, mip" : "=r"(pending));
            if (pending & 0x80) break;
            __asm__ volatile("wfi");
        }
        u64 now = MTIME, date = rtc();
        if (now < time || date < wall) PAGE[6] += 1;
        time = now;
        wall = date;
        if (now - due > PAGE[4]) {
            PAGE[5] = now;
            PAGE[4] = now - due;
        }
        PAGE[2] = time;
        PAGE[3] = wall;
        PAGE[1] += 1;
    }
}

__asm__(".section .text.entry, \"ax\"\n"
        ".global _start\n"
        "_start:\n"
        // The timer wakes the hart; interrupts stay off in mstatus.
        "li t0, 0x80\n"
        "csrw mie, t0\n"
        "bnez a0, 1f\n"
        "lla sp, stack_top\n"
        "j run\n"
        "1: wfi\n"
        "j 1b\n");
