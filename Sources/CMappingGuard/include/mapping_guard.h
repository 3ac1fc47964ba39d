#ifndef MAPPING_GUARD_H
#define MAPPING_GUARD_H

#include <stddef.h>
#include <stdint.h>

/* Mappings of files that another process may shorten. An access behind the end
 * of such a file raises SIGBUS, which would end this process; with a guard the
 * page becomes one of our own that reads as all ones, as a device does that is
 * not there any more. Main thread only. */

/* Whether FD, which another process has given, is a file with SIZE bytes at
 * OFFSET, and one whose pages come without that process (not of FUSE). */
int mapping_guard_accepts(int fd, uint64_t offset, uint64_t size);

/* Guards a mapping. START is page aligned. Returns 0, or -1 when there are too
 * many, or with errno. */
int mapping_guard_add(void *start, size_t length);

/* Ends it, before the mapping goes. */
void mapping_guard_remove(void *start);

#endif
