/* The module exports one function, which baton-module.h describes. */
#include <baton-module.h>

const struct baton_module_descriptor *baton_module_query(void);
