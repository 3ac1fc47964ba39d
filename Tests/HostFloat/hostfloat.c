#include "hostfloat.h"

#include <fenv.h>
#include <math.h>
#include <string.h>

static const int host_modes[4] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

static void begin(uint8_t rm) {
    fesetround(host_modes[rm & 3]);
    feclearexcept(FE_ALL_EXCEPT);
}

static uint8_t end(void) {
    int raised = fetestexcept(FE_ALL_EXCEPT);
    uint8_t flags = 0;
    if (raised & FE_INEXACT) flags |= 1;
    if (raised & FE_UNDERFLOW) flags |= 2;
    if (raised & FE_OVERFLOW) flags |= 4;
    if (raised & FE_DIVBYZERO) flags |= 8;
    if (raised & FE_INVALID) flags |= 16;
    fesetround(FE_TONEAREST);
    return flags;
}

// The volatile operands keep the compiler from moving an operation across begin() and end().
#define DEFINE_HOST(NAME, FLOAT, BITS, OTHER, OTHER_BITS, SQRT, FMA, RINT)                  \
    host_result NAME(host_operation operation, uint8_t rm, BITS ab, BITS bb, BITS cb) {     \
        volatile FLOAT a, b, c, r = 0;                                                      \
        volatile OTHER other = 0;                                                           \
        volatile int truth = 0;                                                             \
        host_result result = {0, 0};                                                        \
        memcpy((void *)&a, &ab, sizeof a);                                                  \
        memcpy((void *)&b, &bb, sizeof b);                                                  \
        memcpy((void *)&c, &cb, sizeof c);                                                  \
        begin(rm);                                                                          \
        switch (operation) {                                                                \
        case HOST_ADD: r = a + b; break;                                                    \
        case HOST_SUB: r = a - b; break;                                                    \
        case HOST_MUL: r = a * b; break;                                                    \
        case HOST_DIV: r = a / b; break;                                                    \
        case HOST_SQRT: r = SQRT(a); break;                                                 \
        case HOST_FMA: r = FMA(a, b, c); break;                                             \
        case HOST_EQ: truth = a == b; break;                                                \
        case HOST_LT: truth = a < b; break;                                                 \
        case HOST_LE: truth = a <= b; break;                                                \
        case HOST_RINT: r = RINT(a); break;                                                 \
        case HOST_CONVERT: other = (OTHER)a; break;                                         \
        }                                                                                   \
        result.flags = end();                                                               \
        if (operation == HOST_EQ || operation == HOST_LT || operation == HOST_LE) {         \
            result.bits = (uint64_t)truth;                                                  \
        } else if (operation == HOST_CONVERT) {                                             \
            OTHER_BITS bits;                                                                \
            memcpy(&bits, (const void *)&other, sizeof bits);                               \
            result.bits = bits;                                                             \
        } else {                                                                            \
            BITS bits;                                                                      \
            memcpy(&bits, (const void *)&r, sizeof bits);                                   \
            result.bits = bits;                                                             \
        }                                                                                   \
        return result;                                                                      \
    }

DEFINE_HOST(host_binary32, float, uint32_t, double, uint64_t, sqrtf, fmaf, rintf)
DEFINE_HOST(host_binary64, double, uint64_t, float, uint32_t, sqrt, fma, rint)

// Through the x87 format, which holds any 64-bit integer: so the conversion is rounded once.
host_result host_integer_to_binary32(int is_signed, uint8_t rm, uint64_t value) {
    volatile long double exact = is_signed ? (long double)(int64_t)value : (long double)value;
    volatile float rounded;
    uint32_t bits;
    host_result result;
    begin(rm);
    rounded = (float)exact;
    result.flags = end();
    memcpy(&bits, (const void *)&rounded, sizeof bits);
    result.bits = bits;
    return result;
}

host_result host_integer_to_binary64(int is_signed, uint8_t rm, uint64_t value) {
    volatile long double exact = is_signed ? (long double)(int64_t)value : (long double)value;
    volatile double rounded;
    host_result result;
    begin(rm);
    rounded = (double)exact;
    result.flags = end();
    memcpy(&result.bits, (const void *)&rounded, sizeof result.bits);
    return result;
}
