// What bare-metal guests of the virt board share: types, the serial port, and
// the end of a guest that has found what must not be.
#ifndef BATON_GUEST_BARE_H
#define BATON_GUEST_BARE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define R8(address) (*(volatile u8 *)(u64)(address))
#define R16(address) (*(volatile u16 *)(u64)(address))
#define R32(address) (*(volatile u32 *)(u64)(address))
#define R64(address) (*(volatile u64 *)(u64)(address))

#define UART ((volatile u8 *)0x10000000UL)
#define PLIC(offset) R32(0x0c000000UL + (offset))
// Configuration space of a function 0 of bus 0.
#define CONFIG(slot, offset) (0x30000000UL + ((u64)(slot) << 15) + (offset))

static inline void put(char c) {
    while (!(UART[5] & 0x20)) {}
    UART[0] = (u8)c;
}

static inline void text(const char *s) {
    while (*s) put(*s++);
}

static inline void number_in(u64 value, unsigned base) {
    char digits[64];
    unsigned count = 0;
    do digits[count++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (count) put(digits[--count]);
}

static inline void number(u64 value) { number_in(value, 10); }

_Noreturn static inline void fail(const char *what, u64 a, u64 b) {
    text("FAIL ");
    text(what);
    text(" ");
    number(a);
    text(" ");
    number(b);
    text("\n");
    for (;;) __asm__ volatile("wfi");
}

// Where the image is entered: the first hart goes on in `run`, with a stack.
#define ENTER_RUN                                                                                                   \
    __asm__(".section .text.entry, \"ax\"\n"                                                                       \
            ".global _start\n"                                                                                      \
            "_start:\n"                                                                                             \
            "bnez a0, 1f\n"                                                                                         \
            "lla sp, stack_top\n"                                                                                   \
            "j run\n"                                                                                               \
            "1: wfi\n"                                                                                              \
            "j 1b\n")

#endif
