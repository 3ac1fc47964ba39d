#include "foreign_call.h"
#include <ffi.h>

static ffi_type *type_of(char letter) {
    switch (letter) {
    case 'v': return &ffi_type_void;
    case 'b': return &ffi_type_uint8;
    case 'i': return &ffi_type_sint32;
    case 'I': return &ffi_type_uint32;
    case 'l': return &ffi_type_sint64;
    case 'L': return &ffi_type_uint64;
    case 'd': return &ffi_type_double;
    case 'p': return &ffi_type_pointer;
    case 'z': return sizeof(size_t) == 8 ? &ffi_type_uint64 : &ffi_type_uint32;
    default: return NULL;
    }
}

int foreign_call(
    void (*function)(void), char result, const char *letters, size_t count, union foreign_value *arguments,
    union foreign_value *returned) {
    ffi_type *types[FOREIGN_ARGUMENTS_MAX];
    void *values[FOREIGN_ARGUMENTS_MAX];
    if (count > FOREIGN_ARGUMENTS_MAX) return -1;
    for (size_t i = 0; i < count; i++) {
        types[i] = type_of(letters[i]);
        if (!types[i] || letters[i] == 'v') return -1;
        values[i] = &arguments[i];
    }
    ffi_type *result_type = type_of(result);
    ffi_cif interface;
    if (!result_type || ffi_prep_cif(&interface, FFI_DEFAULT_ABI, (unsigned)count, result_type, types) != FFI_OK)
        return -1;
    /* libffi widens what is smaller than a register. */
    union {
        ffi_arg word;
        ffi_sarg signed_word;
        union foreign_value value;
    } raw = {.word = 0};
    ffi_call(&interface, function, &raw, values);
    switch (result) {
    case 'b': returned->b = (uint8_t)raw.word != 0; break;
    case 'i': returned->i = (int32_t)raw.signed_word; break;
    case 'I': returned->I = (uint32_t)raw.word; break;
    default: *returned = raw.value; break;
    }
    return 0;
}
