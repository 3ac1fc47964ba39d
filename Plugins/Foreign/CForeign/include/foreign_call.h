/* Calls a C function whose type is only known from a text, through libffi. */
#ifndef FOREIGN_CALL_H
#define FOREIGN_CALL_H

#include <stddef.h>
#include <stdint.h>

/* An argument or result; which member counts is said by a letter:
 * b boolean, i I 32 bits, l L 64 bits, d, p pointer, z size_t, v nothing. */
union foreign_value {
    uint8_t b;
    int32_t i;
    uint32_t I;
    int64_t l;
    uint64_t L;
    double d;
    const void *p;
    size_t z;
};

#define FOREIGN_ARGUMENTS_MAX 64

/* Calls FUNCTION. LETTERS has COUNT letters, one an argument. Returns 0, or -1
 * when a letter or the number of arguments is not one that can be called. */
int foreign_call(
    void (*function)(void), char result, const char *letters, size_t count, union foreign_value *arguments,
    union foreign_value *returned);

#endif
