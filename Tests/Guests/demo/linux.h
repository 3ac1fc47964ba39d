// System calls, and the start of a process, on both of the demonstration's machines (arch/riscv and arch/x86 of Linux).
#ifndef BATON_DEMO_LINUX_H
#define BATON_DEMO_LINUX_H

/// Where a program begins, with the stack as Linux left it: the number of arguments, then pointers to them.
_Noreturn void start(long *stack);

#if defined(__riscv)

enum {
    SYS_openat = 56, SYS_write = 64, SYS_pread64 = 67, SYS_pwrite64 = 68, SYS_faccessat = 48,
    SYS_exit = 93, SYS_clock_gettime = 113,
};

static inline long call(long number, long a, long b, long c, long d) {
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a7 __asm__("a7") = number;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a3), "r"(a7) : "memory");
    return a0;
}

__asm__(".global _start\n"
        "_start:\n"
        ".option push\n.option norelax\n"
        "lla gp, __global_pointer$\n"
        ".option pop\n"
        "mv a0, sp\n"
        "andi sp, sp, -16\n"
        "j start\n");

#elif defined(__x86_64__)

enum {
    SYS_openat = 257, SYS_write = 1, SYS_pread64 = 17, SYS_pwrite64 = 18, SYS_faccessat = 269,
    SYS_exit = 60, SYS_clock_gettime = 228,
};

static inline long call(long number, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return number;
}

__asm__(".global _start\n"
        "_start:\n"
        "mov %rsp, %rdi\n"
        "and $-16, %rsp\n"
        "call start\n");

#endif
#endif
