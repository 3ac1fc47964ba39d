#define _GNU_SOURCE
#include "harness_system.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

int harness_borrow_fd(pid_t pid, int fd) {
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) return -1;
    int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
    int saved = errno;
    close(pidfd);
    errno = saved;
    return copy;
}

int harness_same_file(int fd, pid_t pid, int other_fd) {
    long result = syscall(SYS_kcmp, getpid(), pid, KCMP_FILE, fd, other_fd);
    return result < 0 ? -1 : result == 0;
}

int harness_limit_file_size(pid_t pid, uint64_t bytes) {
    struct rlimit limit;
    if (prlimit(pid, RLIMIT_FSIZE, NULL, &limit) != 0) return -1;
    limit.rlim_cur = bytes == UINT64_MAX ? limit.rlim_max : bytes;
    return prlimit(pid, RLIMIT_FSIZE, &limit, NULL);
}

int harness_spawn_closes_from(posix_spawn_file_actions_t *actions, int from) {
    return posix_spawn_file_actions_addclosefrom_np(actions, from);
}

int harness_allow_descriptors(uint64_t count) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
    if (limit.rlim_cur >= count) return 0;
    limit.rlim_cur = count < limit.rlim_max ? count : limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit);
}

int harness_adopt_orphans(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }

int harness_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC); }

int harness_try_kvm(void) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) return errno;
    int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    int vm = version == KVM_API_VERSION ? ioctl(kvm, KVM_CREATE_VM, 0) : -1;
    int result = vm >= 0 ? 0 : version < 0 || version == KVM_API_VERSION ? errno : -version;
    if (vm >= 0) close(vm);
    close(kvm);
    return result;
}

int harness_landlock_version(void) { return (int)syscall(444, NULL, 0, 1); }

int harness_unmount(const char *path) { return umount2(path, MNT_DETACH); }
