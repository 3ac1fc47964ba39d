// The host's FPU under a chosen rounding mode, as an independent reference for
// the SoftFloat tests. Rounding modes and flags are numbered as in RISC-V.
#ifndef BATON_TESTS_HOSTFLOAT_H
#define BATON_TESTS_HOSTFLOAT_H

#include <stdint.h>

typedef struct {
    uint64_t bits;
    uint8_t flags;
} host_result;

typedef enum {
    HOST_ADD,
    HOST_SUB,
    HOST_MUL,
    HOST_DIV,
    HOST_SQRT,
    HOST_FMA,
    HOST_EQ,
    HOST_LT,
    HOST_LE,
    HOST_RINT,     // to an integral value in the same format
    HOST_CONVERT,  // to the other format
} host_operation;

// NaN results come back as the host made them.
host_result host_binary32(host_operation operation, uint8_t rm, uint32_t a, uint32_t b, uint32_t c);
host_result host_binary64(host_operation operation, uint8_t rm, uint64_t a, uint64_t b, uint64_t c);

host_result host_integer_to_binary32(int is_signed, uint8_t rm, uint64_t value);
host_result host_integer_to_binary64(int is_signed, uint8_t rm, uint64_t value);

#endif
