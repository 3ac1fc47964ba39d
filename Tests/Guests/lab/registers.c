// The guest's work with registers.

#include "lab.h"

// Registers: what vector registers, the x87 stack and general registers hold stays while nothing but time goes by.

void register_work(int which)
{
    __attribute__((aligned(32))) uint64_t in[8][4], out[8][4];
    int wide = __builtin_cpu_supports("avx");
    uint64_t number = which;
    for (;; number++) {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 4; j++)
                in[i][j] = mix(number, i * 4 + j);
        uint64_t spins = 20000, general = number, flags = 0x1f80 | which << 13, flags_out = 0;
        long double x87 = number + 0.25L;
        __asm__ volatile("ldmxcsr %0" ::"m"(flags));
#define LOAD(R) "vmovdqa " #R "*32(%[in]), %%ymm" #R "\n"
#define STORE(R) "vmovdqa %%ymm" #R ", " #R "*32(%[out])\n"
#define LOAD_NARROW(R) "movdqa " #R "*32(%[in]), %%xmm" #R "\n"
#define STORE_NARROW(R) "movdqa %%xmm" #R ", " #R "*32(%[out])\n"
#define ALL(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define SPIN "1: dec %[spins]\n jnz 1b\n"
        if (wide)
            __asm__ volatile(ALL(LOAD) SPIN ALL(STORE) "vzeroupper"
                             : [spins] "+r"(spins), [general] "+r"(general), [x87] "+t"(x87)
                             : [in] "r"(in), [out] "r"(out)
                             : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        else
            __asm__ volatile(ALL(LOAD_NARROW) SPIN ALL(STORE_NARROW)
                             : [spins] "+r"(spins), [general] "+r"(general), [x87] "+t"(x87)
                             : [in] "r"(in), [out] "r"(out)
                             : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        __asm__ volatile("stmxcsr %0" : "=m"(flags_out));
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < (wide ? 4 : 2); j++)
                if (in[i][j] != out[i][j])
                    FAIL("vector register %d, word %d is %lx, not %lx", i, j, out[i][j], in[i][j]);
        // The exception bits are set by whatever is computed.
        if (general != number || x87 != number + 0.25L || (flags_out ^ flags) & 0xffc0)
            FAIL("registers: %lu, %Lf and mxcsr %lx in round %lu", general, x87, flags_out, number);
        add(&shared->rounds);
        usleep(3000);
    }
}
