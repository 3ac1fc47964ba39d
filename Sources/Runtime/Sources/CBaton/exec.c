#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What the keeper waits for: either of two processes to end. */
struct awaited {
    int process[2]; /* pidfds, the second the later one, and so of a higher number */
};

/* Runs beside the exec, in the same memory and with the same thread-local
 * variables, on a stack of its own: system calls that succeed, and nothing
 * else. Descriptors are its own. */
static int keep(void *argument) {
    const struct awaited *awaited = argument;
    /* Nothing else may stay open, seem connected, or be locked because of us. */
    for (int i = 0; i < 2; i++)
        if (awaited->process[i] != i) syscall(SYS_dup3, awaited->process[i], i, 0);
    syscall(SYS_close_range, 2u, ~0u, 0u);
    /* The guest runs when we free its old mappings. */
    syscall(SYS_setpriority, PRIO_PROCESS, 0, 19);
    struct pollfd ends[2] = {{.fd = 0, .events = POLLIN}, {.fd = 1, .events = POLLIN}};
    syscall(SYS_ppoll, ends, 2, NULL, NULL, 0);
    return 0;
}

pid_t cbaton_start_keeper(pid_t watcher) {
    static _Alignas(64) char stack[16384];
    static struct awaited awaited;
    pid_t keeper = -1;
    int own = cbaton_pidfd_open(getpid()), other = watcher > 0 ? cbaton_pidfd_open(watcher) : -1;
    if (own >= 0 && other >= 0) {
        awaited = (struct awaited){.process = {own, other}};
        sigset_t all, before;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &before);
        keeper = clone(keep, stack + sizeof stack, CLONE_VM | SIGCHLD, &awaited);
        sigprocmask(SIG_SETMASK, &before, NULL);
    }
    /* The keeper has descriptors of its own. */
    if (own >= 0) close(own);
    if (other >= 0) close(other);
    return keeper;
}

void cbaton_stop_signals(sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

void cbaton_accept_stop_signals(void) {
    sigset_t stops;
    cbaton_stop_signals(&stops);
    sigprocmask(SIG_UNBLOCK, &stops, NULL);
}

void cbaton_hold_stop_signals(void) {
    sigset_t stops;
    cbaton_stop_signals(&stops);
    sigprocmask(SIG_BLOCK, &stops, NULL);
}

int cbaton_execvp(const char *file, char *const argv[]) {
    sigset_t stops, before;
    cbaton_stop_signals(&stops);
    sigprocmask(SIG_BLOCK, &stops, &before);
    execvp(file, argv);
    int code = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return -1;
}

int cbaton_await_child(pid_t child, int64_t limit) {
    int fd = limit > 0 ? cbaton_pidfd_open(child) : -1;
    if (fd >= 0) {
        int64_t deadline = cbaton_monotonic_ns() + limit, left = limit;
        struct pollfd end = {.fd = fd, .events = POLLIN};
        while (left > 0 && poll(&end, 1, (int)(left / 1000000 + 1)) < 0 && errno == EINTR)
            left = deadline - cbaton_monotonic_ns();
        close(fd);
    }
    pid_t found;
    do found = waitpid(child, NULL, WNOHANG);
    while (found < 0 && errno == EINTR);
    return found != 0;
}

void cbaton_keep_namespace(void) {
    sigset_t set;
    cbaton_stop_signals(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_SETMASK, &set, NULL);
    /* Not ignored, and so not discarded either. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, NULL);
    syscall(SYS_close_range, 0u, ~0u, 0u);
    for (;;) {
        pid_t ended;
        do ended = waitpid(-1, NULL, WNOHANG);
        while (ended > 0);
        if (ended < 0 && errno == ECHILD) _exit(0);
        int number = sigwaitinfo(&set, NULL);
        if (number > 0 && number != SIGCHLD) kill(-1, number);
    }
}
