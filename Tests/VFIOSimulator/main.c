/* vfio-simulator [OPTION…] -- COMMAND…
 *   --log FILE               one line a request that changes something
 *   --device NAME            of the device, default 0000:06:0d.0
 *   --group NUMBER           of its group, default 7
 *   --lack WHAT              update_vaddr, unmap_all, type1, viable, pci, reset, mmap
 *   --refuse NAME=ERRNO[:N]  refuses a request, always or the Nth time
 *
 * Runs COMMAND with its opens of /dev/vfio and its VFIO ioctls answered here;
 * those of what it executes and forks too. Ends when all of them have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "simulator.h"

struct settings settings = {.device = "0000:06:0d.0", .group = 7};
static int log_fd = 2;

void note(pid_t pid, const char *format, ...) {
    char text[512];
    int length = snprintf(text, sizeof text, "%d ", pid);
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(text + length, sizeof text - (size_t)length - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 2) length = sizeof text - 2;
    text[length++] = '\n';
    (void)!write(log_fd, text, (size_t)length);
}

int refuse(pid_t pid, const char *name, int error, const char *why) {
    note(pid, "refused %s errno=%d: %s", name, error, why);
    return -error;
}

int refused(const char *name) {
    for (size_t i = 0; i < settings.refusal_count; i++) {
        struct refusal *r = &settings.refusals[i];
        if (strcmp(r->name, name)) continue;
        r->seen++;
        if (!r->nth || r->nth == r->seen) return r->error;
    }
    return 0;
}

int fetch(pid_t pid, uint64_t address, void *data, size_t size) {
    struct iovec here = {data, size}, there = {(void *)address, size};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

int store(pid_t pid, uint64_t address, const void *data, size_t size) {
    struct iovec here = {(void *)data, size}, there = {(void *)address, size};
    return process_vm_writev(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

int take_fd(pid_t pid, int fd) {
    int process = (int)syscall(SYS_pidfd_open, pid, 0);
    if (process < 0) return -1;
    int copy = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
    close(process);
    return copy;
}

/* MARK: The child */

static int install_filter(void) {
#if defined(__x86_64__)
    const unsigned architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    const unsigned architecture = AUDIT_ARCH_AARCH64;
#endif
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x3b00, 2, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x3c00, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

/* Starts the command; the listener comes over a socket. */
static pid_t start(char **command, int *listener) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return -1;
    char byte = 0;
    struct iovec data = {&byte, 1};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(127);
        int fd = install_filter();
        if (fd < 0) {
            perror("seccomp");
            _exit(127);
        }
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        if (sendmsg(pair[1], &message, 0) != 1) _exit(127);
        close(fd);
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    close(pair[1]);
    *listener = -1;
    if (child > 0 && recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message)) {
        memcpy(listener, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof *listener);
    }
    close(pair[0]);
    return child;
}

/* MARK: Requests */

static bool names_same_file(pid_t pid, int fd, int ours) {
    char path[64];
    struct stat theirs, mine;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return !stat(path, &theirs) && !fstat(ours, &mine) && theirs.st_ino == mine.st_ino && theirs.st_dev == mine.st_dev;
}

static struct answer open_file(pid_t pid, const char *path) {
    char group[64];
    snprintf(group, sizeof group, "/dev/vfio/%d", settings.group);
    bool is_group = !strcmp(path, group);
    if (!is_group && strcmp(path, "/dev/vfio/vfio")) return (struct answer){refuse(pid, "open", ENOENT, path), -1};
    const char *name = is_group ? "open_group" : "open_container";
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    note(pid, "%s", name);
    return (struct answer){0, is_group ? group_fd() : container_fd()};
}

/* Reads a path up to the end of its page at first, as no more need be there. */
static void fetch_path(pid_t pid, uint64_t address, char *path, size_t size) {
    memset(path, 0, size);
    size_t first = 4096 - (address & 4095);
    if (first > size - 1) first = size - 1;
    if (fetch(pid, address, path, first)) return;
    if (!memchr(path, 0, first) && first < size - 1) fetch(pid, address + first, path + first, size - 1 - first);
}

/* - Returns: false when the system call is none of ours. */
static bool answer_call(const struct seccomp_notif *call, struct answer *answer) {
    pid_t pid = (pid_t)call->pid;
    if (call->data.nr == SYS_openat) {
        char path[64];
        fetch_path(pid, call->data.args[1], path, sizeof path);
        if (strncmp(path, "/dev/vfio/", 10)) return false;
        *answer = open_file(pid, path);
        return true;
    }
    int fd = (int)call->data.args[0];
    unsigned request = (unsigned)call->data.args[1];
    uint64_t argument = call->data.args[2];
    if (names_same_file(pid, fd, container_fd())) *answer = container_ioctl(pid, request, argument);
    else if (names_same_file(pid, fd, group_fd())) *answer = group_ioctl(pid, request, argument);
    else if (names_same_file(pid, fd, device_fd())) *answer = device_ioctl(pid, request, argument);
    else *answer = (struct answer){refuse(pid, "ioctl", ENOTTY, "a descriptor that is none of VFIO's"), -1};
    return true;
}

/* - Returns: false at the end of the last process. */
static bool serve(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno == EINTR || errno == ENOENT;
    struct seccomp_notif_resp response = {.id = call.id};
    struct answer answer = {0, -1};
    if (!answer_call(&call, &answer)) {
        response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    } else if (answer.fd >= 0) {
        struct seccomp_notif_addfd add = {
            .id = call.id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = (unsigned)answer.fd, .newfd_flags = O_CLOEXEC};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0 || errno == ENOENT) return true;
        response.error = -EMFILE;
    } else if (answer.result < 0) {
        response.error = (int)answer.result;
    } else {
        response.val = answer.result;
    }
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
    return true;
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void run(int listener) {
    const long long period = 500000;
    long long next = now();
    for (;;) {
        struct pollfd state = {listener, POLLIN, 0};
        long long left = next - now();
        struct timespec wait = {0, left > 0 ? left : 0};
        int ready = ppoll(&state, 1, &wait, NULL);
        if (ready > 0 && state.revents & (POLLHUP | POLLERR) && !(state.revents & POLLIN)) return;
        if (ready > 0 && !serve(listener)) return;
        if (now() >= next) {
            device_tick();
            next = now() + period;
        }
    }
}

/* MARK: Start */

static bool lack(const char *what) {
    const struct { const char *name; bool *flag; } all[] = {
        {"update_vaddr", &settings.lacks_update_vaddr}, {"unmap_all", &settings.lacks_unmap_all},
        {"type1", &settings.lacks_type1}, {"viable", &settings.lacks_viable}, {"pci", &settings.lacks_pci},
        {"reset", &settings.lacks_reset}, {"mmap", &settings.lacks_mmap},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!strcmp(all[i].name, what)) return *all[i].flag = true;
    }
    return false;
}

static bool add_refusal(char *text) {
    char *equals = strchr(text, '=');
    if (!equals || settings.refusal_count == sizeof settings.refusals / sizeof *settings.refusals) return false;
    *equals = 0;
    struct refusal *r = &settings.refusals[settings.refusal_count++];
    *r = (struct refusal){.name = text};
    return sscanf(equals + 1, "%d:%u", &r->error, &r->nth) >= 1 && r->error > 0;
}

static bool option(const char *name, char *value) {
    if (!strcmp(name, "--log")) return (log_fd = open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) >= 0;
    if (!strcmp(name, "--device")) return (settings.device = value);
    if (!strcmp(name, "--group")) return sscanf(value, "%d", &settings.group) == 1;
    if (!strcmp(name, "--lack")) return lack(value);
    return !strcmp(name, "--refuse") && add_refusal(value);
}

int main(int count, char **arguments) {
    int at = 1;
    for (; at < count && strcmp(arguments[at], "--"); at += 2) {
        if (at + 1 < count && option(arguments[at], arguments[at + 1])) continue;
        fprintf(stderr, "vfio-simulator: bad option %s\n", arguments[at]);
        return 2;
    }
    if (at + 1 >= count) return fprintf(stderr, "vfio-simulator: no command\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    iommu_start();
    device_start();
    int listener;
    pid_t child = start(arguments + at + 1, &listener);
    if (child < 0 || listener < 0) return fprintf(stderr, "vfio-simulator: cannot start %s\n", arguments[at + 1]), 2;
    run(listener);
    device_report();
    int status = 0;
    if (waitpid(child, &status, 0) != child) return 2;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
