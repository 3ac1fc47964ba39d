/* liveupdate-kernel --state DIR [OPTION…] -- COMMAND…
 *   --refuse REQUEST=ERRNO[:TOKEN]  refuses a request: create, take, preserve, retrieve, finish
 *   --hold TOKEN                    to preserve that takes until SIGUSR2
 *
 * Runs COMMAND with /dev/liveupdate answered here, as Linux' Live Update Orchestrator answers (kernel/liveupdate and
 * mm/memfd_luo.c of Linux 7.2), and that of what it executes and forks too. Ends when all of them have, with the
 * status of COMMAND.
 *
 * SIGUSR1 is the kexec: what sessions have that are open then is written to DIR/SESSION/TOKEN, and the processes are
 * killed. The next kernel is another liveupdate-kernel with the same DIR: it gives a session out once, as
 * DIR/SESSION.taken, and drops it when it is finished or, as all its processes have ended, nobody has it open. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "call-notices.h"
#include "caller.h"

static const char device[] = "/dev/liveupdate";
/* By their numbers; what names a session, or a file of one, begins with its size and a descriptor. */
enum { CREATE = 0xba00, TAKE, PRESERVE = 0xba40, RETRIEVE, FINISH, GET_NAME };
enum { NAME_SIZE = 64, FILES = 64, SESSIONS = 8, REFUSALS = 8 };

static const char *state_directory;
/* Of names of descriptors, so that tests do not meet each other's sessions. */
static unsigned long long state_id;

static struct session {
    char name[NAME_SIZE];
    /* A session of the kernel before is in files. */
    bool is_incoming;
    size_t count;
    struct { uint64_t token; int fd; } files[FILES];
} sessions[SESSIONS];
static size_t session_count;

static struct { int request, error; long long token; } refusals[REFUSALS];
static size_t refusal_count;

/* What takes long, if anything does, and the call that waits for it. */
static long long held_token = -1;
static struct seccomp_notif held_call;

struct answer {
    long result;
    /* Becomes a descriptor of the process, which is stored in the argument's second word; -1 for none. */
    int fd;
};

static int refused(int request, uint64_t token) {
    for (size_t i = 0; i < refusal_count; i++) {
        if (refusals[i].request == request && (refusals[i].token < 0 || (uint64_t)refusals[i].token == token))
            return refusals[i].error;
    }
    return 0;
}

/* MARK: Processes */

/* A session's descriptor is a memfd of this name, and that of the device one without a session's. */
static void mark(char *text, size_t size, const char *name) {
    snprintf(text, size, "luo:%llu:%s", state_id, name);
}

static bool link_is(const char *path, const char *name) {
    char mark_text[160], wanted[192], is[192];
    mark(mark_text, sizeof mark_text, name);
    snprintf(wanted, sizeof wanted, "/memfd:%s (deleted)", mark_text);
    ssize_t length = readlink(path, is, sizeof is - 1);
    if (length < 0) return false;
    is[length] = 0;
    return !strcmp(is, wanted);
}

/* Whether any process has a session open. */
static bool is_open(const char *name) {
    bool found = false;
    DIR *all = opendir("/proc");
    struct dirent *process;
    while (all && !found && (process = readdir(all))) {
        char path[600];
        if (process->d_name[0] < '1' || process->d_name[0] > '9' || atoi(process->d_name) == getpid()) continue;
        snprintf(path, sizeof path, "/proc/%s/fd", process->d_name);
        DIR *descriptors = opendir(path);
        struct dirent *entry;
        while (descriptors && !found && (entry = readdir(descriptors))) {
            snprintf(path, sizeof path, "/proc/%s/fd/%s", process->d_name, entry->d_name);
            found = link_is(path, name);
        }
        if (descriptors) closedir(descriptors);
    }
    if (all) closedir(all);
    return found;
}

static int new_descriptor(const char *name) {
    char text[160];
    mark(text, sizeof text, name);
    return memfd_create(text, MFD_CLOEXEC);
}

/* MARK: Sessions */

static void forget(struct session *session) {
    for (size_t i = 0; i < session->count; i++) close(session->files[i].fd);
    *session = sessions[--session_count];
}

static void forget_closed(void) {
    for (size_t i = session_count; i-- > 0;) {
        if (!sessions[i].is_incoming && !is_open(sessions[i].name)) forget(&sessions[i]);
    }
}

static struct session *add(const char *name, bool is_incoming) {
    if (session_count == SESSIONS) return NULL;
    struct session *session = &sessions[session_count++];
    *session = (struct session){.is_incoming = is_incoming};
    memcpy(session->name, name, strlen(name));
    return session;
}

static void path_of(char *path, size_t size, const char *name, const char *suffix) {
    snprintf(path, size, "%s/%s%s", state_directory, name, suffix);
}

static struct answer create(const char *name) {
    int error = refused(CREATE, 0);
    if (error) return (struct answer){-error, -1};
    forget_closed();
    if (is_open(name)) return (struct answer){-EEXIST, -1};
    if (!add(name, false)) return (struct answer){-ENOSPC, -1};
    return (struct answer){0, new_descriptor(name)};
}

static struct answer take(const char *name) {
    char from[512], to[512];
    int error = refused(TAKE, 0);
    if (error) return (struct answer){-error, -1};
    path_of(from, sizeof from, name, "");
    path_of(to, sizeof to, name, ".taken");
    if (!access(to, F_OK)) return (struct answer){-EINVAL, -1};
    if (rename(from, to)) return (struct answer){-ENOENT, -1};
    if (!add(name, true)) return (struct answer){-ENOSPC, -1};
    return (struct answer){0, new_descriptor(name)};
}

static bool copy(int from, int to) {
    off_t size = lseek(from, 0, SEEK_END), at = 0;
    if (size < 0 || ftruncate(to, size)) return false;
    while (at < size && (at = lseek(from, at, SEEK_DATA)) >= 0) {
        char buffer[1 << 16];
        ssize_t count = pread(from, buffer, sizeof buffer, at);
        if (count <= 0 || pwrite(to, buffer, (size_t)count, at) != count) return false;
        at += count;
    }
    return at >= 0 || errno == ENXIO;
}

static long preserve(struct session *session, pid_t pid, int number, uint64_t token) {
    int error = refused(PRESERVE, token);
    if (error) return -error;
    struct stat status;
    int fd = caller_take_fd(pid, number);
    if (fd < 0) return -EBADF;
    /* Memory of huge pages has another page size, and a file has a name. */
    if (fstat(fd, &status) || status.st_nlink || fcntl(fd, F_GET_SEALS) < 0 || status.st_blksize != sysconf(_SC_PAGESIZE)) {
        close(fd);
        return -ENOENT;
    }
    for (size_t i = 0; i < session->count; i++) error = error ?: session->files[i].token == token ? EEXIST : 0;
    if (session->count == FILES) error = ENOSPC;
    if (error) {
        close(fd);
        return -error;
    }
    session->files[session->count].token = token;
    session->files[session->count++].fd = fd;
    return 0;
}

static struct answer retrieve(const char *name, uint64_t token) {
    char path[512];
    int error = refused(RETRIEVE, token);
    if (error) return (struct answer){-error, -1};
    path_of(path, sizeof path, name, ".taken");
    if (access(path, F_OK)) return (struct answer){-EINVAL, -1};
    size_t length = strlen(path);
    snprintf(path + length, sizeof path - length, "/%llu", (unsigned long long)token);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return (struct answer){-ENOENT, -1};
    int fd = memfd_create("", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    bool is_whole = fd >= 0 && copy(file, fd);
    close(file);
    if (is_whole) return (struct answer){0, fd};
    if (fd >= 0) close(fd);
    return (struct answer){-EIO, -1};
}

static void drop(const char *name) {
    char path[512], file[800];
    path_of(path, sizeof path, name, ".taken");
    DIR *all = opendir(path);
    struct dirent *entry;
    while (all && (entry = readdir(all))) {
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        unlink(file);
    }
    if (all) closedir(all);
    rmdir(path);
}

static long finish(const char *name) {
    int error = refused(FINISH, 0);
    if (error) return -error;
    char path[512];
    path_of(path, sizeof path, name, ".taken");
    if (access(path, F_OK)) return -EINVAL;
    drop(name);
    return 0;
}

/* Writes what goes through the kexec. */
static bool kexec(void) {
    forget_closed();
    for (size_t i = 0; i < session_count; i++) {
        char path[512], file[600];
        if (sessions[i].is_incoming) continue;
        path_of(path, sizeof path, sessions[i].name, "");
        if (mkdir(path, 0700)) return false;
        for (size_t k = 0; k < sessions[i].count; k++) {
            snprintf(file, sizeof file, "%s/%llu", path, (unsigned long long)sessions[i].files[k].token);
            int fd = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            if (fd < 0 || !copy(sessions[i].files[k].fd, fd)) return false;
            close(fd);
        }
    }
    return true;
}

/* MARK: Requests */

/* Which session a descriptor of a process is; its name is in `name`. */
static bool identify(pid_t pid, int fd, char *name) {
    char path[64], is[192], prefix[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    ssize_t length = readlink(path, is, sizeof is - 1);
    size_t start = (size_t)snprintf(prefix, sizeof prefix, "/memfd:luo:%llu:", state_id);
    const char end[] = " (deleted)";
    if (length < (ssize_t)(start + sizeof end - 1) || strncmp(is, prefix, start)) return false;
    size_t count = (size_t)length - (sizeof end - 1) - start;
    if (count >= NAME_SIZE) return false;
    memcpy(name, is + start, count);
    name[count] = 0;
    return true;
}

static struct session *find(const char *name) {
    for (size_t i = 0; i < session_count; i++) {
        if (!strcmp(sessions[i].name, name) && !sessions[i].is_incoming) return &sessions[i];
    }
    return NULL;
}

static struct answer request(pid_t pid, int fd, unsigned command, uint64_t address) {
    char own[NAME_SIZE] = "", name[NAME_SIZE + 1] = "";
    struct { uint32_t size; int32_t fd; uint64_t token; } file = {0};
    struct answer fault = {-EFAULT, -1};
    if (!identify(pid, fd, own)) return (struct answer){-ENOTTY, -1};
    if (command == CREATE || command == TAKE) {
        if (own[0]) return (struct answer){-ENOTTY, -1};
        if (caller_fetch(pid, address + 8, name, NAME_SIZE)) return fault;
        if (!name[0] || strlen(name) >= NAME_SIZE || strchr(name, '/')) return (struct answer){-EINVAL, -1};
        return command == CREATE ? create(name) : take(name);
    }
    if (command == GET_NAME) return (struct answer){caller_store(pid, address + 8, own, NAME_SIZE) ? -EFAULT : 0, -1};
    if (command == FINISH) return (struct answer){finish(own), -1};
    if (caller_fetch(pid, address, &file, sizeof file)) return fault;
    if (command == RETRIEVE) return retrieve(own, file.token);
    struct session *session = find(own);
    if (command != PRESERVE || !session) return (struct answer){-EINVAL, -1};
    return (struct answer){preserve(session, pid, file.fd, file.token), -1};
}

static bool is_device(pid_t pid, uint64_t address) {
    char path[sizeof device];
    return !caller_fetch(pid, address, path, sizeof path) && !memcmp(path, device, sizeof device);
}

static void answer_call(int listener, const struct seccomp_notif *call) {
    pid_t pid = caller_process((pid_t)call->pid);
    const __u64 *arguments = call->data.args;
    struct seccomp_notif_resp response = {.id = call->id};
    struct answer answer = {0, -1};
    if (call->data.nr == SYS_ioctl) {
        answer = request(pid, (int)arguments[0], (unsigned)arguments[1], arguments[2]);
        if (answer.fd >= 0) {
            struct seccomp_notif_addfd add = {
                .id = call->id, .srcfd = (unsigned)answer.fd, .newfd_flags = O_CLOEXEC};
            int32_t number = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
            if (number < 0 || caller_store(pid, arguments[2] + 4, &number, sizeof number)) answer.result = -EFAULT;
            close(answer.fd);
        }
    } else if (!is_device(pid, arguments[call->data.nr == SYS_openat])) {
        response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    } else if (call->data.nr == SYS_openat) {
        int fd = new_descriptor("");
        bool is_sent = !caller_give_fd(listener, call->id, fd);
        close(fd);
        if (is_sent) return;
        answer.result = -EMFILE;
    }
    if (answer.result < 0) response.error = (int)answer.result;
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

static bool is_held(const struct seccomp_notif *call) {
    uint64_t token;
    return held_token >= 0 && !held_call.id && call->data.nr == SYS_ioctl && (unsigned)call->data.args[1] == PRESERVE
        && !caller_fetch(caller_process((pid_t)call->pid), call->data.args[2] + 8, &token, sizeof token)
        && token == (uint64_t)held_token;
}

/* Returns false at the end of the last process. */
static bool serve(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno == EINTR || errno == ENOENT;
    if (is_held(&call)) held_call = call;
    else answer_call(listener, &call);
    return true;
}

static void let_go(int listener) {
    if (held_call.id) answer_call(listener, &held_call);
    held_token = -1;
}

/* MARK: Start */

static pid_t start(char **command, int *listener) {
    static const unsigned calls[] = {
        SYS_openat,
#ifdef SYS_access
        SYS_access,
#endif
    };
    return call_notices_start_requests(command, calls, sizeof calls / sizeof *calls, CREATE >> 8, listener);
}

static bool add_refusal(char *text) {
    static const struct { const char *name; int request; } all[] = {
        {"create", CREATE}, {"take", TAKE}, {"preserve", PRESERVE}, {"retrieve", RETRIEVE}, {"finish", FINISH},
    };
    char *equals = strchr(text, '=');
    if (!equals || refusal_count == REFUSALS) return false;
    *equals = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(all[i].name, text)) continue;
        refusals[refusal_count].request = all[i].request;
        refusals[refusal_count].token = -1;
        return sscanf(equals + 1, "%d:%lld", &refusals[refusal_count].error, &refusals[refusal_count].token) >= 1
            && refusals[refusal_count++].error > 0;
    }
    return false;
}

static bool option(const char *name, char *value) {
    if (!strcmp(name, "--refuse")) return add_refusal(value);
    if (!strcmp(name, "--hold")) return sscanf(value, "%lld", &held_token) == 1;
    if (strcmp(name, "--state")) return false;
    struct stat status;
    state_directory = value;
    if (stat(value, &status)) return false;
    state_id = status.st_ino;
    return true;
}

static volatile sig_atomic_t is_executing, is_let_go;
static void take_signal(int number) { *(number == SIGUSR1 ? &is_executing : &is_let_go) = 1; }

int main(int count, char **arguments) {
    int at = 1, listener;
    for (; at < count && strcmp(arguments[at], "--"); at += 2) {
        if (at + 1 < count && option(arguments[at], arguments[at + 1])) continue;
        return fprintf(stderr, "liveupdate-kernel: bad option %s\n", arguments[at]), 2;
    }
    if (at + 1 >= count || !state_directory) return fprintf(stderr, "liveupdate-kernel: no command\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    sigset_t taken, before;
    sigemptyset(&taken);
    sigaddset(&taken, SIGUSR1);
    sigaddset(&taken, SIGUSR2);
    pid_t child = start(arguments + at + 1, &listener);
    if (child < 0 || listener < 0) return fprintf(stderr, "liveupdate-kernel: cannot start\n"), 2;
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = take_signal}, NULL);
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = take_signal}, NULL);
    sigprocmask(SIG_BLOCK, &taken, &before);
    for (struct pollfd state = {listener, POLLIN, 0};;) {
        int ready = ppoll(&state, 1, NULL, &before);
        if (is_executing) {
            if (!kexec()) return perror("liveupdate-kernel: kexec"), kill(child, SIGKILL), 2;
            kill(child, SIGKILL);
            is_executing = 0;
        }
        if (is_let_go) let_go(listener);
        is_let_go = 0;
        if (ready > 0 && call_notices_ended(&state)) break;
        if (ready > 0 && !serve(listener)) break;
    }
    for (size_t i = 0; i < session_count; i++) {
        if (!sessions[i].is_incoming) continue;
        /* Linux lets go of a filter when a process begins to end, and of its descriptors a moment later. */
        for (int tries = 0; tries < 200 && is_open(sessions[i].name); tries++) poll(NULL, 0, 5);
        if (!is_open(sessions[i].name)) drop(sessions[i].name);
    }
    return call_notices_status(child);
}
