// A bare-metal guest that sends back whatever the serial port receives, after
// one line that says it is there. Runs in M-mode (-bios none).
#define UART ((volatile unsigned char *)0x10000000UL)

static void put(unsigned char c) {
    while (!(UART[5] & 0x20)) {}
    UART[0] = c;
}

_Noreturn void run(void) {
    // FIFOs on, so that bytes that are on their way are in the device's state.
    UART[2] = 1;
    for (const char *s = "echo\n"; *s; s++) put((unsigned char)*s);
    for (;;) {
        while (!(UART[5] & 1)) {}
        put(UART[0]);
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
