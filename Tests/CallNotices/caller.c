#define _GNU_SOURCE
#include "caller.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

pid_t caller_process(pid_t thread) {
    char path[64], line[128];
    snprintf(path, sizeof path, "/proc/%d/status", thread);
    FILE *status = fopen(path, "re");
    int process = thread;
    while (status && fgets(line, sizeof line, status) && sscanf(line, "Tgid: %d", &process) != 1) {}
    if (status) fclose(status);
    return process;
}

int caller_fetch(pid_t pid, uint64_t address, void *data, size_t size) {
    struct iovec here = {data, size}, there = {(void *)address, size};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

int caller_store(pid_t pid, uint64_t address, const void *data, size_t size) {
    struct iovec here = {(void *)data, size}, there = {(void *)address, size};
    return process_vm_writev(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

int caller_take_fd(pid_t pid, int fd) {
    int process = (int)syscall(SYS_pidfd_open, pid, 0);
    if (process < 0) return -1;
    int copy = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
    close(process);
    return copy;
}

int caller_give_fd(int listener, uint64_t call, int fd) {
    struct seccomp_notif_addfd add = {
        .id = call, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = (unsigned)fd, .newfd_flags = O_CLOEXEC};
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0 || errno == ENOENT ? 0 : -1;
}
