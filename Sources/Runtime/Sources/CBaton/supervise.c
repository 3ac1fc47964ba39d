#define _GNU_SOURCE
#include "cbaton.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Nanoseconds that the last processes may take to be ended. */
static const int64_t end_limit = 5000000000;

struct plan {
    char *const *argv;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    unsigned long timer_slack;
    int control, report;
};

/* ---- In the supervisor: a copy of one thread, which may not meet the caller's
 * signal handlers, descriptors or terminal. */

static void close_between(unsigned first, unsigned last) {
    if (first <= last) syscall(SYS_close_range, first, last, 0u);
}

/* Keeps the two pipes. The others are the caller's: nothing of it may stay open,
 * seem connected or be locked because of us. */
static void close_all_but(int a, int b) {
    unsigned low = (unsigned)(a < b ? a : b), high = (unsigned)(a < b ? b : a);
    if (low > 0) close_between(0, low - 1);
    close_between(low + 1, high - 1);
    close_between(high + 1, ~0u);
}

static void tell(int report, int32_t value) {
    while (write(report, &value, sizeof value) < 0 && errno == EINTR) {
    }
}

/* Takes the ends of all processes that have ended. Returns whether none is left. */
static int reap(pid_t program, int report) {
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == program) tell(report, status);
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

/* Kills our children. Theirs become ours when they have gone. */
static void kill_children(pid_t program) {
    DIR *directory = opendir("/proc");
    if (!directory) {
        kill(program, SIGKILL);
        return;
    }
    for (struct dirent *entry; (entry = readdir(directory));) {
        int pid;
        if (sscanf(entry->d_name, "%d", &pid) == 1 && parent_of(entry->d_name) == getpid()) kill(pid, SIGKILL);
    }
    closedir(directory);
}

static void drain(int fd) {
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) > 0) {
    }
}

static _Noreturn void supervise(struct plan *plan) {
    /* No key on the caller's terminal, and no end of its session, is for us. */
    setsid();
    prctl(PR_SET_NAME, "baton-trial");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_TIMERSLACK, plan->timer_slack);
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &action, NULL);
    pid_t program = -1;
    int code = posix_spawnp(&program, plan->argv[0], &plan->actions, &plan->attributes, plan->argv, environ);
    close_all_but(plan->control, plan->report);
    tell(plan->report, code);
    if (code) _exit(0);

    /* Every signal is blocked here: those of children are read. */
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    struct pollfd news[2] = {{.fd = plan->control, .events = POLLIN}};
    news[1] = (struct pollfd){.fd = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC), .events = POLLIN};
    int patience = news[1].fd < 0 ? 50 : -1;
    while (!news[0].revents) {
        poll(news, 2, patience);
        drain(news[1].fd);
        if (reap(program, plan->report)) _exit(0);
    }
    for (int64_t limit = cbaton_monotonic_ns() + end_limit; cbaton_monotonic_ns() < limit;) {
        if (reap(program, plan->report)) _exit(0);
        kill_children(program);
        poll(&news[1], 1, 20);
        drain(news[1].fd);
    }
    _exit(0);
}

/* ---- In the caller. */

static int prepare(struct plan *plan, const int *fds, size_t count, int standard_error, const sigset_t *mask) {
    int code = posix_spawn_file_actions_init(&plan->actions);
    if (code) return code;
    code = posix_spawnattr_init(&plan->attributes);
    if (code) {
        posix_spawn_file_actions_destroy(&plan->actions);
        return code;
    }
    posix_spawnattr_setsigmask(&plan->attributes, mask);
    code = posix_spawnattr_setflags(&plan->attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    if (!code) code = posix_spawn_file_actions_addopen(&plan->actions, 0, "/dev/null", O_RDONLY, 0);
    if (!code) code = posix_spawn_file_actions_addopen(&plan->actions, 1, "/dev/null", O_WRONLY, 0);
    if (!code) code = posix_spawn_file_actions_adddup2(&plan->actions, standard_error, 2);
    /* Onto itself: clears FD_CLOEXEC. */
    for (size_t i = 0; !code && i < count; i++)
        code = posix_spawn_file_actions_adddup2(&plan->actions, fds[i], fds[i]);
    if (code) {
        posix_spawnattr_destroy(&plan->attributes);
        posix_spawn_file_actions_destroy(&plan->actions);
    }
    return code;
}

int cbaton_supervise(
    char *const argv[], const int *fds, size_t count, int standard_error, unsigned long timer_slack,
    struct cbaton_supervised *result) {
    struct plan plan = {.argv = argv, .timer_slack = timer_slack};
    int control[2], report[2];
    if (pipe2(control, O_CLOEXEC) != 0) return errno;
    if (pipe2(report, O_CLOEXEC) != 0) {
        int code = errno;
        close(control[0]);
        close(control[1]);
        return code;
    }
    plan.control = control[0];
    plan.report = report[1];
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t supervisor = -1;
    int code = prepare(&plan, fds, count, standard_error, &before);
    if (!code) {
        supervisor = fork();
        if (supervisor == 0) supervise(&plan);
        if (supervisor < 0) code = errno;
        posix_spawnattr_destroy(&plan.attributes);
        posix_spawn_file_actions_destroy(&plan.actions);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(control[0]);
    close(report[1]);
    if (!code) {
        int32_t first = ECHILD;
        ssize_t got;
        do got = read(report[0], &first, sizeof first);
        while (got < 0 && errno == EINTR);
        code = first;
    }
    if (!code) {
        *result = (struct cbaton_supervised){supervisor, control[1], report[0]};
        return 0;
    }
    close(control[1]);
    close(report[0]);
    if (supervisor > 0) cbaton_reap(supervisor);
    return code;
}

void cbaton_reap(pid_t pid) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

int cbaton_set_timer_slack(unsigned long nanoseconds) { return prctl(PR_SET_TIMERSLACK, nanoseconds); }
unsigned long cbaton_timer_slack(void) { return (unsigned long)prctl(PR_GET_TIMERSLACK); }
