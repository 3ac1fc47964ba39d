#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cbaton.h"

/* What disks need of the kernel. */

ssize_t cbaton_pwritev(int fd, const struct iovec *vectors, int count, off_t offset, int durable) {
    return pwritev2(fd, vectors, count, offset, durable ? RWF_DSYNC : 0);
}

int cbaton_set_direct(int fd, int is_direct) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return -1;
    int wanted = is_direct ? flags | O_DIRECT : flags & ~O_DIRECT;
    return wanted == flags ? 0 : fcntl(fd, F_SETFL, wanted);
}

int cbaton_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) {
    struct statx status = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && status.stx_mask & STATX_DIOALIGN &&
        status.stx_dio_offset_align) {
        *memory = status.stx_dio_mem_align;
        *offset = status.stx_dio_offset_align;
        return 0;
    }
    int size = 0;
    if (ioctl(fd, BLKSSZGET, &size) == 0 && size > 0) {
        *memory = *offset = (uint32_t)size;
        return 0;
    }
    return -1;
}
