/* The binary interface between Baton and a module's file.
 *
 * A module exports one function, baton_module_query, which returns a
 * descriptor that stays valid for the life of the process. Nothing else of the
 * module runs before the descriptor has been checked. */
#ifndef BATON_MODULE_H
#define BATON_MODULE_H

#include <stdint.h>

/* "BATONMOD", little endian. */
#define BATON_MODULE_MAGIC UINT64_C(0x444f4d4e4f544142)
/* Raised when the meaning of a field below changes. */
#define BATON_MODULE_ABI 1u
#define BATON_MODULE_QUERY_SYMBOL "baton_module_query"

struct baton_module_descriptor {
    uint64_t magic;          /* BATON_MODULE_MAGIC */
    uint32_t size;           /* sizeof of this structure as the module knows it */
    uint32_t abi;            /* BATON_MODULE_ABI */
    const char *kind;        /* "mode", "memory-backend", "preserver", "accel" */
    const char *name;        /* as on the command line: "restart" */
    const char *version;     /* for people */
    const char *fingerprint; /* of the runtime that the module was built against */
    uint64_t capabilities;   /* bits that the runtime must have; 0 for now */
    /* Registers what the module provides. Returns 0, or another value after
     * it has told the registrar why not. The argument is valid for the call. */
    int32_t (*register_module)(void *registrar);
};

typedef const struct baton_module_descriptor *(*baton_module_query_fn)(void);

#endif
