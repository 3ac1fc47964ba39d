/* The guard of a helper process: a small process between the VMM and a program that the VMM has started, such as a
 * storage daemon. The VMM may be executed anew, roll back to a child of itself, or hand its guest to another process, so
 * the helper cannot be tied to a process; it is tied to a socket that goes from VMM to VMM. When nobody has the other end
 * any more, the helper is ended, whatever has become of the VMM. The guard also reads what the helper says, so that a VMM
 * that has no time, or has been stopped, holds no helper up. */
#define _GNU_SOURCE
#include "cbaton.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* baton OPTION SOCKET DIRECTORY [-confined [-writes=FILE]...] PROGRAM ARGUMENT... */
#define CBATON_GUARD_OPTION "-helper-guard"
/* Nanoseconds from SIGTERM to SIGKILL: an image's data may have to be written. */
static const int64_t end_limit = 30000000000;

struct guard {
    int socket;    /* to the VMM; -1 when there is none any more */
    int directory; /* the helper's own */
    int errors;    /* what the helper says */
    int ready;     /* inotify, until the helper is ready; then -1 */
    pid_t helper;
    int is_last;      /* nobody will start the helper again */
    int64_t deadline; /* for the helper's end; 0 when it is to go on */
    char line[CBATON_HELPER_LINE];
    size_t length;
};

/* ---- In the guard. */

/* A VMM that does not read loses lines, and nothing else. */
static void tell(struct guard *guard, char kind, const void *data, size_t length) {
    char message[1 + CBATON_HELPER_LINE];
    message[0] = kind;
    memcpy(message + 1, data, length);
    if (guard->socket >= 0) send(guard->socket, message, 1 + length, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void end_line(struct guard *guard) {
    if (guard->length > 0) tell(guard, CBATON_HELPER_SAYS, guard->line, guard->length);
    guard->length = 0;
}

/* Returns whether there may be more. */
static int forward(struct guard *guard) {
    char bytes[4096];
    ssize_t count = read(guard->errors, bytes, sizeof bytes);
    if (count < 0) return errno == EINTR;
    for (ssize_t i = 0; i < count; i++) {
        if (bytes[i] == '\n' || guard->length == sizeof guard->line) end_line(guard);
        if (bytes[i] != '\n') guard->line[guard->length++] = bytes[i];
    }
    if (count == 0) {
        close(guard->errors);
        guard->errors = -1;
    }
    return count > 0;
}

/* The helper has written its PID: it serves. */
static void look_whether_ready(struct guard *guard) {
    char events[4096];
    while (read(guard->ready, events, sizeof events) > 0) {
    }
    struct stat status;
    if (fstatat(guard->directory, CBATON_HELPER_PID, &status, AT_SYMLINK_NOFOLLOW) != 0 || status.st_size == 0) return;
    close(guard->ready);
    guard->ready = -1;
    tell(guard, CBATON_HELPER_READY, NULL, 0);
}

static void end_helper(struct guard *guard) {
    guard->is_last = 1;
    if (guard->deadline) return;
    guard->deadline = cbaton_monotonic_ns() + end_limit;
    kill(guard->helper, SIGTERM);
    kill(guard->helper, SIGCONT);
}

static void hear(struct guard *guard) {
    char message;
    ssize_t count = recv(guard->socket, &message, 1, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count > 0 && message != CBATON_HELPER_END) return;
    if (count <= 0) {
        close(guard->socket);
        guard->socket = -1;
    }
    end_helper(guard);
}

static void remove_directory(struct guard *guard, const char *path) {
    DIR *directory = fdopendir(guard->directory);
    for (struct dirent *entry; directory && (entry = readdir(directory));) unlinkat(guard->directory, entry->d_name, 0);
    rmdir(path);
}

/* ---- The sandbox of a helper that has none of its own. It may read what its user can, as an image names others, and
 * write what it serves and what is in its directory. What the kernel does not have of this is left out. */

/* What a program that serves images never calls. */
static const unsigned refused_calls[] = {
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot,
    SYS_unshare, SYS_setns, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct,
    SYS_settimeofday, SYS_clock_settime, SYS_sethostname, SYS_setdomainname, SYS_personality, SYS_open_by_handle_at,
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setgroups,
#if defined(__x86_64__)
    SYS_iopl, SYS_ioperm, SYS_modify_ldt,
#endif
};
#define REFUSED_CALLS (sizeof refused_calls / sizeof *refused_calls)

static void refuse_calls(void) {
    const uint32_t allow = 0x7fff0000, not_permitted = 0x00050000 | EPERM, no_such_call = 0x00050000 | ENOSYS;
    struct cbaton_instruction program[5 + 2 * REFUSED_CALLS];
    size_t count = 0;
    /* Loads of the architecture and the number, comparisons with a constant, and ends. */
    program[count++] = (struct cbaton_instruction){0x20, 0, 0, 4};
    program[count++] = (struct cbaton_instruction){0x15, 1, 0, cbaton_audit_architecture()};
    program[count++] = (struct cbaton_instruction){0x06, 0, 0, no_such_call};
    program[count++] = (struct cbaton_instruction){0x20, 0, 0, 0};
    for (size_t i = 0; i < REFUSED_CALLS; i++) {
        program[count++] = (struct cbaton_instruction){0x15, 0, 1, refused_calls[i]};
        program[count++] = (struct cbaton_instruction){0x06, 0, 0, not_permitted};
    }
    program[count++] = (struct cbaton_instruction){0x06, 0, 0, allow};
    cbaton_filter(program, count, 0);
}

static void allow_path(int ruleset, const char *path, uint64_t access) {
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) return;
    cbaton_landlock_allow(ruleset, fd, access);
    close(fd);
}

static int is_file_to_write(const char *word) {
    return strncmp(word, CBATON_HELPER_WRITES, sizeof CBATON_HELPER_WRITES - 1) == 0;
}

/* Returns where the program begins. */
static char *const *confine(char *const words[], const char *directory) {
    if (strcmp(*words, CBATON_HELPER_CONFINED) != 0) return words;
    words++;
    cbaton_no_new_privileges();
    int version = cbaton_landlock_version();
    /* Writing; with a directory, also to remove and make anything in it. */
    const uint64_t in_file = 1 << 1 | (version >= 3 ? 1 << 14 : 0) | (version >= 5 ? 1 << 15 : 0);
    const uint64_t all = in_file | 0x1ff << 4;
    int ruleset = version > 0 && strcmp(*words, CBATON_HELPER_WRITES_ANYTHING) != 0
        ? cbaton_landlock_make(all, 0, version >= 6 ? 3 : 0) : -1;
    if (ruleset >= 0) {
        allow_path(ruleset, directory, all);
        allow_path(ruleset, "/dev/null", in_file);
    }
    for (; is_file_to_write(*words) || strcmp(*words, CBATON_HELPER_WRITES_ANYTHING) == 0; words++)
        if (ruleset >= 0) allow_path(ruleset, *words + sizeof CBATON_HELPER_WRITES - 1, in_file);
    if (ruleset >= 0) {
        cbaton_landlock_enter(ruleset);
        close(ruleset);
    }
    refuse_calls();
    return words;
}

/* Becomes the helper. */
static _Noreturn void run(char *const words[], const char *directory, int errors, pid_t guard) {
    /* The guard never executes anything, and has no other thread. */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != guard) _exit(127);
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(errors, 2);
    char *const *argv = confine(words, directory);
    execvp(argv[0], argv);
    dprintf(2, "cannot execute '%s': %s\n", argv[0], strerror(errno));
    _exit(127);
}

static int be_guard(int socket, const char *path, char *const argv[]) {
    struct guard guard = {.socket = socket, .errors = -1, .ready = -1};
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    signal(SIGCHLD, SIG_DFL);
    /* No key on the VMM's terminal is for the helper. */
    setsid();
    prctl(PR_SET_NAME, "baton-guard");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    for (int fd = 3; fd < socket; fd++) close(fd);
    syscall(SYS_close_range, (unsigned)socket + 1, ~0u, 0u);
    fcntl(socket, F_SETFD, FD_CLOEXEC);

    int errors[2];
    guard.directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (guard.directory < 0 || pipe2(errors, O_CLOEXEC | O_NONBLOCK) != 0) return 1;
    fcntl(errors[1], F_SETFL, 0);
    /* Who tidies up temporary directories leaves alone what is locked. */
    flock(guard.directory, LOCK_SH | LOCK_NB);
    unlinkat(guard.directory, CBATON_HELPER_PID, 0);
    unlinkat(guard.directory, CBATON_HELPER_SOCKET, 0);
    guard.ready = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    inotify_add_watch(guard.ready, path, IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO);
    guard.errors = errors[0];
    pid_t self = getpid();
    guard.helper = fork();
    if (guard.helper < 0) return 1;
    if (guard.helper == 0) run(argv, path, errors[1], self);
    close(errors[1]);
    int pid = guard.helper, end = cbaton_pidfd_open(guard.helper);
    if (end < 0) return 1;
    tell(&guard, CBATON_HELPER_STARTED, &pid, sizeof pid);

    for (;;) {
        struct pollfd news[] = {
            {.fd = end, .events = POLLIN}, {.fd = guard.socket, .events = POLLIN},
            {.fd = guard.errors, .events = POLLIN}, {.fd = guard.ready, .events = POLLIN},
        };
        int64_t left = guard.deadline - cbaton_monotonic_ns();
        if (guard.deadline && left <= 0) kill(guard.helper, SIGKILL);
        poll(news, 4, guard.deadline ? (int)(left > 0 ? left / 1000000 + 1 : 1000) : -1);
        if (news[2].revents) forward(&guard);
        if (news[3].revents && guard.ready >= 0) look_whether_ready(&guard);
        if (news[1].revents) hear(&guard);
        if (news[0].revents) break;
    }
    while (guard.errors >= 0 && forward(&guard)) {
    }
    end_line(&guard);
    int status = 0;
    while (waitpid(guard.helper, &status, 0) < 0 && errno == EINTR) {
    }
    /* Before it is told: whoever waits for the end finds nothing left. */
    if (guard.is_last) remove_directory(&guard, path);
    tell(&guard, CBATON_HELPER_ENDED, &status, sizeof status);
    return 0;
}

void cbaton_be_helper_guard_if_asked(void) {
    if (cbaton_argument_count() < 5 || strcmp(cbaton_argument(1), CBATON_GUARD_OPTION) != 0) return;
    _exit(be_guard(atoi(cbaton_argument(2)), cbaton_argument(3), (char *const *)cbaton_arguments() + 4));
}

/* ---- In the VMM. */

int cbaton_start_helper(const char *directory, char *const argv[], pid_t *guard) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return -errno;
    size_t count = 0;
    while (argv[count]) count++;
    char number[16];
    snprintf(number, sizeof number, "%d", ends[1]);
    char **words = malloc((count + 5) * sizeof *words);
    int code = words ? 0 : ENOMEM;
    if (words) {
        words[0] = "/proc/self/exe";
        words[1] = CBATON_GUARD_OPTION;
        words[2] = number;
        words[3] = (char *)directory;
        memcpy(words + 4, argv, (count + 1) * sizeof *words);
        code = cbaton_spawn(words, &ends[1], 1, 2, guard);
    }
    free(words);
    close(ends[1]);
    if (code == 0 && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0) return ends[0];
    close(ends[0]);
    return -(code ? code : errno);
}
