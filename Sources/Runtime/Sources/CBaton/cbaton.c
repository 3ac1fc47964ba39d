#define _GNU_SOURCE
#include "cbaton.h"
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

int cbaton_memfd_create(const char *name, unsigned extra_flags) {
    return memfd_create(name, MFD_CLOEXEC | extra_flags);
}

int cbaton_seal_size(int fd) {
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

int cbaton_is_write_sealed(int fd) {
    const int future_write = 0x10; /* F_SEAL_FUTURE_WRITE of Linux 5.1. */
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & (F_SEAL_WRITE | future_write)) != 0;
}

static void attribute_name(const char *name, char *full, size_t size) { snprintf(full, size, "user.%s", name); }

ssize_t cbaton_get_attribute(int fd, const char *name, void *value, size_t size) {
    char full[64];
    attribute_name(name, full, sizeof full);
    return fgetxattr(fd, full, value, size);
}

int cbaton_set_attribute(int fd, const char *name, const void *value, size_t size) {
    char full[64];
    attribute_name(name, full, sizeof full);
    return fsetxattr(fd, full, value, size, 0);
}

int cbaton_remove_attribute(int fd, const char *name) {
    char full[64];
    attribute_name(name, full, sizeof full);
    return fremovexattr(fd, full) == 0 || errno == ENODATA ? 0 : -1;
}

int cbaton_seal_contents(int fd) {
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
}

int cbaton_is_sealed(int fd) {
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && seals & F_SEAL_WRITE;
}

int cbaton_link_begins(int fd, const char *prefix) {
    char path[32], link[64];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof link);
    size_t wanted = strlen(prefix);
    return length > 0 && (size_t)length >= wanted && memcmp(link, prefix, wanted) == 0;
}

int cbaton_punch_hole(int fd, off_t offset, off_t length) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

int cbaton_zero_range(int fd, off_t offset, off_t length) {
    return fallocate(fd, FALLOC_FL_ZERO_RANGE, offset, length);
}

int cbaton_lock_range(int fd, int kind, off_t start, off_t length) {
    struct flock lock = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

int cbaton_is_range_locked(int fd, off_t start, off_t length) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return -1;
    return lock.l_type != F_UNLCK;
}

int cbaton_open_nofollow(const char *path, int flags) { return cbaton_make_nofollow(path, flags, 0); }

int cbaton_make_nofollow(const char *path, int flags, mode_t mode) {
    struct open_how how = {
        .flags = (uint64_t)(flags | O_CLOEXEC),
        .mode = flags & O_CREAT ? mode : 0,
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

int cbaton_is_privileged(void) { return getauxval(AT_SECURE) != 0; }

int cbaton_is_root_or_self(unsigned uid) { return uid == 0 || uid == geteuid(); }

int cbaton_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }

int cbaton_open_pty(char *slave_path, size_t size) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0) return -1;
    int slave = -1;
    if (grantpt(master) == 0 && unlockpt(master) == 0 && ptsname_r(master, slave_path, size) == 0)
        slave = open(slave_path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios mode;
    int ok = slave >= 0 && tcgetattr(slave, &mode) == 0;
    if (ok) {
        cfmakeraw(&mode);
        ok = tcsetattr(slave, TCSAFLUSH, &mode) == 0 && fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) == 0;
    }
    int saved = errno;
    if (slave >= 0) close(slave);
    if (ok) return master;
    close(master);
    errno = saved;
    return -1;
}

int cbaton_pty_name(int master, char *slave_path, size_t size) { return ptsname_r(master, slave_path, size); }

int cbaton_watch_opens(const char *path) {
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd >= 0 && inotify_add_watch(fd, path, IN_OPEN) < 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

ssize_t cbaton_getrandom(void *buffer, size_t length) { return getrandom(buffer, length, 0); }

void cbaton_close_range(unsigned first, unsigned last) { syscall(SYS_close_range, first, last, 0u); }

int cbaton_cloexec_from(unsigned low) {
    return (int)syscall(SYS_close_range, low, ~0u, CLOSE_RANGE_CLOEXEC);
}

void *cbaton_dlopen(const char *path) {
    return dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static uint32_t crc32c_by_table(uint32_t crc, const uint8_t *bytes, size_t size) {
    static uint32_t table[256];
    if (!table[1]) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
            table[i] = value;
        }
    }
    while (size--) crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
    return crc;
}

#if defined(__x86_64__)
/* The CPU's own instruction: the contents of RAM are summed while the guest
 * stands still. */
__attribute__((target("sse4.2")))
static uint32_t crc32c_by_cpu(uint32_t crc, const uint8_t *bytes, size_t size) {
    uint64_t value = crc;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word;
        __builtin_memcpy(&word, bytes, 8);
        value = __builtin_ia32_crc32di(value, word);
    }
    while (size--) value = __builtin_ia32_crc32qi((uint32_t)value, *bytes++);
    return (uint32_t)value;
}
#endif

uint32_t cbaton_crc32c(uint32_t crc, const void *data, size_t size) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~crc32c_by_cpu(~crc, data, size);
#endif
    return ~crc32c_by_table(~crc, data, size);
}

int cbaton_is_ignored(int number) {
    struct sigaction action;
    return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

int cbaton_daemonize(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return -1;
    pid_t child = fork();
    if (child < 0) return -1;
    if (child > 0) {
        close(ends[1]);
        unsigned char status = 1;
        ssize_t n;
        do n = read(ends[0], &status, 1);
        while (n < 0 && errno == EINTR);
        _exit(n == 1 ? status : 1);
    }
    close(ends[0]);
    setsid();
    umask(027);
    return ends[1];
}

void cbaton_daemon_ready(int fd, int status) {
    unsigned char byte = (unsigned char)status;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        if (null > 2) close(null);
    }
    while (write(fd, &byte, 1) < 0 && errno == EINTR) {
    }
    close(fd);
}

int cbaton_spawn(char *const argv[], const int *fds, size_t count, int standard_error, pid_t *pid) {
    /* Its end must be told to whoever waits for it. */
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &action, NULL);
    posix_spawn_file_actions_t actions;
    int code = posix_spawn_file_actions_init(&actions);
    if (code) return code;
    code = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!code) code = posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    if (!code) code = posix_spawn_file_actions_adddup2(&actions, standard_error, 2);
    /* Onto itself: clears FD_CLOEXEC. */
    for (size_t i = 0; !code && i < count; i++) code = posix_spawn_file_actions_adddup2(&actions, fds[i], fds[i]);
    if (!code) code = posix_spawnp(pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return code;
}

int cbaton_is_same_file(pid_t a, int fd_of_a, pid_t b, int fd_of_b) {
    return syscall(SYS_kcmp, a, b, 0 /* KCMP_FILE */, (unsigned long)fd_of_a, (unsigned long)fd_of_b) == 0;
}

int cbaton_peer(int socket, pid_t *pid, uint32_t *uid) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return -1;
    *pid = peer.pid;
    *uid = peer.uid;
    return 0;
}

int cbaton_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

int cbaton_pidfd_send_signal(int pidfd, int number) {
    return (int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
}

/* linux/pidfd.h, which Debian 12 has without them. */
struct pidfd_info_0 {
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
};
#define GET_INFO _IOWR(0xff, 11, struct pidfd_info_0)
#define INFO_EXIT (1u << 3)

int cbaton_pidfd_status(int pidfd) {
    struct pidfd_info_0 info = {.mask = INFO_EXIT};
    return ioctl(pidfd, GET_INFO, &info) == 0 && info.mask & INFO_EXIT ? info.exit_code : -1;
}

int cbaton_processors(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

int cbaton_is_memory_file(int fd) {
    const long tmpfs = 0x01021994;
    struct statfs system;
    return fstatfs(fd, &system) == 0 && system.f_type == tmpfs;
}

long cbaton_huge_page_size(int fd) {
    struct statfs system;
    if (fstatfs(fd, &system) != 0 || system.f_type != 0x958458f6 /* HUGETLBFS_MAGIC */) return 0;
    return system.f_bsize;
}

int cbaton_mbind(void *start, size_t length, int mode, const unsigned long *mask, unsigned long mask_bits) {
    const unsigned strict_and_move = 1 | 2;
    return (int)syscall(SYS_mbind, start, length, mode, mask, mask_bits, strict_and_move);
}

int cbaton_move_mapping(void *old, size_t length, void *new_) {
    return mremap(old, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, new_) == MAP_FAILED ? -1 : 0;
}

int cbaton_is_memory_filesystem(const char *path) {
    const long tmpfs = 0x01021994, hugetlbfs = 0x958458f6;
    struct statfs system;
    return statfs(path, &system) != 0 || system.f_type == tmpfs || system.f_type == hugetlbfs;
}

ssize_t cbaton_send_fds(int socket, const void *data, size_t length, const int *fds, size_t count, int flags) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CBATON_MESSAGE_FDS * sizeof(int))];
    } control;
    if (count > CBATON_MESSAGE_FDS) {
        errno = EINVAL;
        return -1;
    }
    struct iovec vector = {.iov_base = (void *)data, .iov_len = length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    return sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

ssize_t cbaton_receive_fds(int socket, void *data, size_t length, int *fds, int *count, int flags) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CBATON_MESSAGE_FDS * sizeof(int))];
    } control;
    struct iovec vector = {.iov_base = data, .iov_len = length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    *count = 0;
    ssize_t received = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    if (received < 0) return received;
    int taken = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t index = 0; index < here; index++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + index * sizeof(int), sizeof fd);
            if (taken < CBATON_MESSAGE_FDS) fds[taken++] = fd;
            else close(fd);
        }
    }
    if (message.msg_flags & MSG_CTRUNC) {
        while (taken > 0) close(fds[--taken]);
        taken = -1;
    }
    *count = taken;
    return received;
}

ssize_t cbaton_receive_from(int socket, void *data, size_t length, pid_t *sender) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct iovec vector = {.iov_base = data, .iov_len = length};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (received <= 0) return received;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS) {
        struct ucred credentials;
        memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
        *sender = credentials.pid;
    }
    return received;
}

int cbaton_socketpair(int ends[2]) { return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends); }

int cbaton_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

uint64_t cbaton_eventfd_take(int fd) {
    uint64_t count = 0;
    struct iovec vector = {.iov_base = &count, .iov_len = sizeof count};
    return preadv2(fd, &vector, 1, -1, RWF_NOWAIT) == sizeof count ? count : 0;
}

void cbaton_eventfd_add(int fd) {
    uint64_t one = 1;
    ssize_t done = write(fd, &one, sizeof one);
    (void)done;
}

int cbaton_poll(struct pollfd *states, size_t count, int64_t nanoseconds) {
    struct timespec time = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    return ppoll(states, count, nanoseconds < 0 ? NULL : &time, NULL);
}
