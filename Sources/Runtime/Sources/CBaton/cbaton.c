#define _GNU_SOURCE
#include "cbaton.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int cbaton_memfd_create(const char *name, unsigned extra_flags) {
    return memfd_create(name, MFD_CLOEXEC | extra_flags);
}

int cbaton_execvp(const char *file, char *const argv[]) { return execvp(file, argv); }

int cbaton_ioctl_ptr(int fd, unsigned long request, void *argument) {
    return ioctl(fd, request, argument);
}

int cbaton_punch_hole(int fd, off_t offset, off_t length) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

int cbaton_zero_range(int fd, off_t offset, off_t length) {
    return fallocate(fd, FALLOC_FL_ZERO_RANGE, offset, length);
}

int cbaton_open_nofollow(const char *path, int flags) {
    struct open_how how = {
        .flags = (uint64_t)(flags | O_CLOEXEC),
        .resolve = RESOLVE_NO_SYMLINKS,
    };
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t cbaton_monotonic_ns(void) { return now_ns(CLOCK_MONOTONIC); }
int64_t cbaton_realtime_ns(void) { return now_ns(CLOCK_REALTIME); }

int cbaton_is_root_or_self(unsigned uid) { return uid == 0 || uid == geteuid(); }

int cbaton_is_secure_exec(void) { return getauxval(AT_SECURE) != 0; }
