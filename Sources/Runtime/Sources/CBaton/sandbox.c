/* What the kernel has to put a process in a sandbox with: Landlock (landlock(7)), seccomp filters with a listener
 * (seccomp_unotify(2)), capabilities. What is put on, and why, is in BatonModules/Sandbox. */
#define _GNU_SOURCE
#include "cbaton.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <link.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Their numbers are the same on every processor. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* As of Linux 6.12, which headers may not know. The kernel takes as much of it as it knows if the rest is 0. */
struct ruleset {
    uint64_t files, net, scoped;
};
struct path_rule {
    uint64_t access;
    int32_t fd;
} __attribute__((packed));
struct port_rule {
    uint64_t access, port;
};

int cbaton_landlock_version(void) { return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* VERSION */); }

int cbaton_landlock_make(uint64_t files, uint64_t net, uint64_t scoped) {
    struct ruleset rules = {files, net, scoped};
    size_t length = scoped ? sizeof rules : net ? 16 : 8;
    return (int)syscall(SYS_landlock_create_ruleset, &rules, length, 0);
}

int cbaton_landlock_allow(int ruleset, int fd, uint64_t access) {
    struct path_rule rule = {access, fd};
    return (int)syscall(SYS_landlock_add_rule, ruleset, 1 /* PATH_BENEATH */, &rule, 0);
}

int cbaton_landlock_allow_port(int ruleset, uint16_t port, uint64_t access) {
    struct port_rule rule = {access, port};
    return (int)syscall(SYS_landlock_add_rule, ruleset, 2 /* NET_PORT */, &rule, 0);
}

int cbaton_landlock_enter(int ruleset) { return (int)syscall(SYS_landlock_restrict_self, ruleset, 0); }

int cbaton_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
int cbaton_has_no_new_privileges(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1; }

/* ---- Filters. */

extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));

/* As <linux/audit.h> makes them: what this was built for, by its number in ELF files. */
uint32_t cbaton_audit_architecture(void) { return __ehdr_start.e_machine | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE; }

int cbaton_is_checked(void) {
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer)
    return 1;
#else
    return 0;
#endif
}

int cbaton_has_listeners(void) {
    uint32_t action = SECCOMP_RET_USER_NOTIF;
    return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

int cbaton_filter(const struct cbaton_instruction *program, size_t count, int with_listener) {
    struct sock_filter *code = malloc(count * sizeof *code);
    if (!code) return -1;
    for (size_t i = 0; i < count; i++)
        code[i] = (struct sock_filter){program[i].code, program[i].if_true, program[i].if_false, program[i].operand};
    struct sock_fprog filter = {(unsigned short)count, code};
    const unsigned wait_killable = 1 << 5; /* Linux 5.19 */
    unsigned flags = with_listener ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0;
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, with_listener ? flags | wait_killable : 0, &filter);
    if (result < 0 && errno == EINVAL && with_listener)
        result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    int code_number = errno;
    free(code);
    errno = code_number;
    return (int)result;
}

/* The kernel's structures may be larger than those of the headers. */
static struct seccomp_notif_sizes sizes;

int cbaton_next_call(int listener, struct cbaton_call *call) {
    if (!sizes.seccomp_notif && syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) != 0) return -1;
    struct seccomp_notif *notice = calloc(1, sizes.seccomp_notif + sizeof *notice);
    if (!notice) return -1;
    int result = ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notice);
    *call = (struct cbaton_call){notice->id, (pid_t)notice->pid, notice->data.nr, notice->data.arch};
    free(notice);
    return result;
}

int cbaton_answer_call(int listener, const struct cbaton_call *call, int code) {
    struct seccomp_notif_resp *answer = calloc(1, sizes.seccomp_notif_resp + sizeof *answer);
    if (!answer) return -1;
    answer->id = call->id;
    answer->error = -code;
    answer->flags = code == 0 ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
    int result = ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, answer);
    free(answer);
    return result;
}

int cbaton_is_waiting(int listener, const struct cbaton_call *call) {
    uint64_t id = call->id;
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

/* ---- The warden. */

/* What ps(1) and /proc/PID/cmdline show: the words of the VMM are not the warden's. */
static void rename_process(const char *name, const char *words) {
    prctl(PR_SET_NAME, name);
    char *const *arguments = cbaton_arguments();
    int count = cbaton_argument_count();
    if (count == 0) return;
    char *start = arguments[0], *end = arguments[count - 1] + strlen(arguments[count - 1]);
    size_t length = (size_t)(end - start);
    memset(start, 0, length);
    strncpy(start, words, length);
}

pid_t cbaton_fork_warden(int is_quiet, int *socket) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return -1;
    signal(SIGCHLD, SIG_DFL);
    /* Nobody waits for the warden, which may go on after the VMM: a child makes it that shares this memory, for which this
     * waits, and ends at once. So the memory is copied once. */
    volatile pid_t warden = -1;
    volatile int code = 0;
    pid_t starter = vfork();
    if (starter == 0) {
        pid_t made = fork();
        if (made != 0) {
            warden = made;
            code = errno;
            _exit(0);
        }
    } else {
        if (starter < 0) code = errno;
        while (starter > 0 && waitpid(starter, NULL, 0) < 0 && errno == EINTR) continue;
        close(ends[1]);
        if (warden < 0) close(ends[0]);
        *socket = ends[0];
        errno = code;
        return warden;
    }
    /* Whoever ends the VM by a signal to its group or session, or a key, ends this one with it. */
    setsid();
    const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
    *socket = dup3(ends[1], 3, O_CLOEXEC) == 3 || ends[1] == 3 ? 3 : -1;
    if (*socket < 0) _exit(1);
    syscall(SYS_close_range, 4u, ~0u, 0u);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd < (is_quiet ? 3 : 2); fd++) dup2(null, fd);
    if (null > 2) close(null);
    if (chdir("/") != 0) _exit(1);
    rename_process("baton-warden", "baton -sandbox-warden");
    return 0;
}

struct names {
    const char **names;
    size_t count, most;
};

static int note_name(struct dl_phdr_info *info, size_t size, void *context) {
    struct names *names = context;
    (void)size;
    if (names->count < names->most) names->names[names->count] = info->dlpi_name;
    names->count++;
    return 0;
}

size_t cbaton_libraries(const char **names, size_t count) {
    struct names found = {names, 0, count};
    dl_iterate_phdr(note_name, &found);
    return found.count;
}

/* ---- Privileges. */

int cbaton_keep_capabilities(uint64_t kept) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets) != 0) return -1;
    /* Not the bounding set, a call for each of its forty: with no_new_privs an exec brings none that are not here, also to
     * root (capabilities(7)). */
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int half = 0; half < 2; half++) {
        uint32_t mask = (uint32_t)(kept >> 32 * half);
        sets[half].effective &= mask;
        sets[half].permitted &= mask;
        sets[half].inheritable &= mask;
    }
    return (int)syscall(SYS_capset, &header, sets);
}

int cbaton_find_user(const char *name, uint32_t *uid, uint32_t *gid) {
    struct passwd *entry = getpwnam(name);
    if (!entry) return -1;
    *uid = entry->pw_uid;
    *gid = entry->pw_gid;
    return 0;
}

int cbaton_set_groups(const char *name, uint32_t gid) {
    if (name) return initgroups(name, gid);
    gid_t group = gid;
    return setgroups(1, &group);
}

int cbaton_become_user(uint32_t uid, uint32_t gid) {
    if (setgid(gid) != 0 || setuid(uid) != 0) return -1;
    /* The kernel hides what such a process has in /proc from itself, too. */
    return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

int cbaton_change_root(const char *path) { return chroot(path) == 0 ? chdir("/") : -1; }

/* PF_IO_WORKER and PF_USER_WORKER of <linux/sched.h>: threads of the kernel's in the process that uses them, such as
 * vhost's, which run no code of it. */
enum { KERNELS_WORKER = 0x10 | 0x4000 };

static int is_kernels(int directory, const char *thread) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "%.20s/stat", thread);
    int fd = openat(directory, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    /* The ninth field of proc_pid_stat(5); the second, a name in parentheses, may hold anything. */
    const char *rest = length > 0 ? strrchr(text, ')') : NULL;
    unsigned flags = 0;
    return rest && sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & KERNELS_WORKER);
}

int cbaton_is_alone(void) {
    DIR *directory = opendir("/proc/self/task");
    if (!directory) return -1;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        count += entry->d_name[0] != '.' && !is_kernels(dirfd(directory), entry->d_name);
    closedir(directory);
    return count == 1;
}
