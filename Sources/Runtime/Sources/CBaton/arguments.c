/* The command line, kept when the library is loaded. Swift's own `CommandLine` reads /proc/self/cmdline, and is empty
 * where /proc is not mounted: a VMM that believed it would start a default machine. */
#include "cbaton.h"

static int count;
static char **arguments;

/* glibc gives every constructor what it gives main. */
__attribute__((constructor)) static void keep(int argc, char **argv, char **environment) {
    (void)environment;
    count = argc;
    arguments = argv;
    cbaton_be_placeholder_if_asked();
    cbaton_be_helper_guard_if_asked();
}

int cbaton_argument_count(void) { return count; }
const char *cbaton_argument(int index) { return index >= 0 && index < count ? arguments[index] : NULL; }
char *const *cbaton_arguments(void) { return arguments; }
