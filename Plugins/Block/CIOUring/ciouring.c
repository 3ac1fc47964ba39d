#define _GNU_SOURCE
#include "ciouring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

struct ciouring {
    struct io_uring ring;
};

struct ciouring *ciouring_make(unsigned entries, int event) {
    struct ciouring *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    struct io_uring_params parameters = {.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP, .cq_entries = entries * 4};
    int code = io_uring_queue_init_params(entries, &made->ring, &parameters);
    if (code == 0) {
        /* Without this a full ring of ended requests would lose one. */
        code = parameters.features & IORING_FEAT_NODROP ? io_uring_register_eventfd(&made->ring, event) : -ENOSYS;
        if (code) io_uring_queue_exit(&made->ring);
    }
    if (code == 0) return made;
    free(made);
    errno = -code;
    return NULL;
}

void ciouring_free(struct ciouring *ring) {
    io_uring_queue_exit(&ring->ring);
    free(ring);
}

static struct io_uring_sqe *next(struct ciouring *ring) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
    if (entry) return entry;
    io_uring_submit(&ring->ring);
    return io_uring_get_sqe(&ring->ring);
}

static int finish(struct io_uring_sqe *entry, int async, void *tag) {
    if (async) io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    io_uring_sqe_set_data(entry, tag);
    return 0;
}

int ciouring_read(
    struct ciouring *ring, int fd, const struct iovec *vectors, unsigned count, uint64_t offset, int async, void *tag) {
    struct io_uring_sqe *entry = next(ring);
    if (!entry) return -1;
    io_uring_prep_readv(entry, fd, vectors, count, offset);
    return finish(entry, async, tag);
}

int ciouring_write(
    struct ciouring *ring, int fd, const struct iovec *vectors, unsigned count, uint64_t offset, int durable, int async,
    void *tag) {
    struct io_uring_sqe *entry = next(ring);
    if (!entry) return -1;
    io_uring_prep_writev2(entry, fd, vectors, count, offset, durable ? RWF_DSYNC : 0);
    return finish(entry, async, tag);
}

int ciouring_flush(struct ciouring *ring, int fd, void *tag) {
    struct io_uring_sqe *entry = next(ring);
    if (!entry) return -1;
    io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
    return finish(entry, 0, tag);
}

unsigned ciouring_submit(struct ciouring *ring) {
    while (io_uring_sq_ready(&ring->ring) > 0) {
        int code = io_uring_submit(&ring->ring);
        if (code == -EINTR) continue;
        if (code <= 0) break;
    }
    return io_uring_sq_ready(&ring->ring);
}

void *ciouring_reap(struct ciouring *ring, int *result) {
    struct io_uring_cqe *entry;
    if (io_uring_peek_cqe(&ring->ring, &entry) != 0) return NULL;
    void *tag = io_uring_cqe_get_data(entry);
    *result = entry->res;
    io_uring_cqe_seen(&ring->ring, entry);
    return tag;
}
