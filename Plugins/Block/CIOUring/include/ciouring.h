/* What of liburing cannot be called from Swift, as it is inline functions. */
#ifndef CIOURING_H
#define CIOURING_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct ciouring;

/* Makes a ring that has room for ENTRIES requests to be submitted, and four times as many that have ended, and counts each
 * of those on EVENT, an eventfd. Returns NULL and errno when the kernel refuses. */
struct ciouring *ciouring_make(unsigned entries, int event);
void ciouring_free(struct ciouring *ring);

/* Each adds one request; TAG comes back with its end. What does not fit is submitted before. ASYNC: the kernel carries it
 * out in a thread of its own in any case. Return 0, or -1 when there is no room. */
int ciouring_read(
    struct ciouring *ring, int fd, const struct iovec *vectors, unsigned count, uint64_t offset, int async, void *tag);
int ciouring_write(
    struct ciouring *ring, int fd, const struct iovec *vectors, unsigned count, uint64_t offset, int durable, int async,
    void *tag);
int ciouring_flush(struct ciouring *ring, int fd, void *tag);

/* Submits what was added. Returns how many still wait for the kernel to have room. */
unsigned ciouring_submit(struct ciouring *ring);

/* Takes one request that has ended. Returns its tag, and stores its result; NULL when there is none. */
void *ciouring_reap(struct ciouring *ring, int *result);

#endif
