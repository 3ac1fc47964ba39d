#define _GNU_SOURCE
#include "cbaton.h"
#include "sanitizers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Nanoseconds that the last processes may take to be ended. */
static const int64_t end_limit = 5000000000;

/* What the supervisor and the thread that makes it have in common. */
struct plan {
    const struct cbaton_trial *trial;
    int code; /* why the program could not be executed; an errno value */
    char *stack_end; /* of the program, until it is executed */
};

/* ---- In the supervisor. It has the memory of the caller, whose main thread goes on
 * meanwhile and may end at any time: no lock is taken here, and so no memory allocated.
 * Every signal is blocked. */

static void tell(int report, const int32_t *values, size_t count) {
    while (write(report, values, count * sizeof *values) < 0 && errno == EINTR) {
    }
}

/* Takes the ends of all processes that have ended. Returns whether none is left. */
static int reap(pid_t program, int report) {
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        int32_t value = status;
        if (pid == program) tell(report, &value, 1);
    }
    return pid < 0 && errno == ECHILD;
}

/* The parent of a process, by its name in /proc; -1 when it is gone. */
static pid_t parent_of(const char *name) {
    char path[64], text[512];
    int parent;
    if (snprintf(path, sizeof path, "/proc/%s/stat", name) >= (int)sizeof path) return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    if (count <= 0) return -1;
    text[count] = 0;
    /* The program's name, which may hold any byte, is in parentheses. */
    const char *end = strrchr(text, ')');
    return end && sscanf(end, ") %*c %d", &parent) == 1 ? parent : -1;
}

/* Kills the processes to which something applies, other than this one. Returns 0, or -1 without /proc. */
static int kill_those(int (*applies)(const char *name, const void *context), const void *context) {
    struct entry {
        uint64_t inode;
        int64_t offset;
        uint16_t length;
        uint8_t type;
        char name[];
    };
    _Alignas(struct entry) char buffer[4096];
    int directory = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return -1;
    for (long count; (count = syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0;) {
        for (long place = 0; place < count;) {
            struct entry *entry = (struct entry *)(buffer + place);
            place += entry->length;
            int pid = entry->name[0] >= '1' && entry->name[0] <= '9' ? atoi(entry->name) : 0;
            if (pid > 0 && pid != getpid() && applies(entry->name, context)) kill(pid, SIGKILL);
        }
    }
    close(directory);
    return 0;
}

static int is_our_child(const char *name, const void *unused) {
    (void)unused;
    return parent_of(name) == getpid();
}

/* Kills our children. Theirs become ours when they have gone. */
static void kill_children(pid_t program) {
    if (kill_those(is_our_child, NULL) != 0) kill(program, SIGKILL);
}

static void drain(int fd) {
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) > 0) {
    }
}

/* Becomes the program. */
static CBATON_NEVER_LEFT int run_program(void *argument) {
    struct plan *plan = argument;
    const struct cbaton_trial *trial = plan->trial;
    setsid();
    /* The caller's handlers are none for a signal that comes before the exec. */
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) != 0 || action.sa_handler == SIG_IGN) continue;
        action = (struct sigaction){.sa_handler = SIG_DFL};
        sigaction(number, &action, NULL);
    }
    sigprocmask(SIG_SETMASK, &trial->mask, NULL);
    execvpe(trial->argv[0], trial->argv, trial->environment);
    plan->code = errno;
    _exit(127);
}

static CBATON_NEVER_LEFT int supervise(void *argument) {
    struct plan *plan = argument;
    const struct cbaton_trial *trial = plan->trial;
    /* No key on the caller's terminal, and no end of its session, is for us. */
    setsid();
    prctl(PR_SET_NAME, "baton-trial");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_TIMERSLACK, trial->timer_slack);
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &action, NULL);
    pid_t program = clone(run_program, plan->stack_end, CLONE_VM | CLONE_VFORK | SIGCHLD, plan);
    if (program < 0) plan->code = errno;
    /* Of what the program has nothing may stay open because of us. */
    close_range(0, 2, 0);
    for (size_t i = 0; i < trial->count; i++) close(trial->fds[i]);
    tell(trial->report, (int32_t[]){plan->code, getpid(), program}, 3);
    if (plan->code) _exit(0);

    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    struct pollfd news[2] = {{.fd = trial->control, .events = POLLIN}};
    news[1] = (struct pollfd){.fd = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC), .events = POLLIN};
    int patience = news[1].fd < 0 ? 50 : -1;
    while (!news[0].revents) {
        poll(news, 2, patience);
        drain(news[1].fd);
        if (reap(program, trial->report)) _exit(0);
    }
    for (int64_t limit = cbaton_monotonic_ns() + end_limit; cbaton_monotonic_ns() < limit;) {
        if (reap(program, trial->report)) _exit(0);
        kill_children(program);
        poll(&news[1], 1, 20);
        drain(news[1].fd);
    }
    _exit(0);
}

/* ---- What an update has started. */

struct started {
    pid_t other;
    char variable[128]; /* NAME=VALUE */
};

static int has_variable(const char *name, const void *context) {
    const struct started *started = context;
    char path[64], text[65536];
    if (atoi(name) == started->other || snprintf(path, sizeof path, "/proc/%s/environ", name) >= (int)sizeof path)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    /* With the zero byte that ends it. */
    size_t wanted = strlen(started->variable) + 1, kept = 0;
    int found = 0;
    for (ssize_t count; !found && (count = read(fd, text + kept, sizeof text - kept)) > 0;) {
        size_t length = kept + (size_t)count;
        found = memmem(text, length, started->variable, wanted) != NULL;
        kept = length < wanted ? length : wanted;
        memmove(text, text + length - kept, kept);
    }
    close(fd);
    return found;
}

/* Of the one thread that looks for them, which an exec may end: so it allocates nothing. */
static struct started beside;
static int is_looking;

static void kill_started(void *context) {
    /* Copies of the caller's: what that closes meanwhile has to be closed. */
    close_range(3, ~0u, 0);
    kill_those(has_variable, context);
    __atomic_store_n(&is_looking, 0, __ATOMIC_RELEASE);
}

void cbaton_kill_started(const char *variable, pid_t other) {
    struct started started = {.other = other};
    snprintf(started.variable, sizeof started.variable, "%s", variable);
    /* Beside the guest, as there may be many processes to look at. */
    if (!__atomic_exchange_n(&is_looking, 1, __ATOMIC_ACQ_REL)) {
        beside = started;
        if (cbaton_run_apart(kill_started, &beside) == 0) return;
        __atomic_store_n(&is_looking, 0, __ATOMIC_RELEASE);
    }
    kill_those(has_variable, &started);
}

/* ---- In the caller. */

int cbaton_run_trial(const struct cbaton_trial *trial) {
    char stack[131072] __attribute__((aligned(64)));
    /* execvpe(3) copies the arguments for a script that names no interpreter. */
    size_t count = 0;
    while (trial->argv[count]) count++;
    size_t length = (65536 + (count + 2) * sizeof(char *) + 4095) & ~(size_t)4095;
    char *program_stack = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (program_stack == MAP_FAILED) return errno;
    struct plan plan = {.trial = trial, .stack_end = program_stack + length};
    /* With our memory, as a copy of its tables would cost the main thread; with our
     * descriptors, which are nobody else's. */
    pid_t supervisor = clone(supervise, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, &plan);
    int code = supervisor < 0 ? errno : 0;
    munmap(program_stack, length);
    return code;
}

void cbaton_reap(pid_t pid) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

int cbaton_set_timer_slack(unsigned long nanoseconds) { return prctl(PR_SET_TIMERSLACK, nanoseconds); }
unsigned long cbaton_timer_slack(void) { return (unsigned long)prctl(PR_GET_TIMERSLACK); }
