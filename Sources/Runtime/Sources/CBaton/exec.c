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

/* Starts the keeper, with every signal blocked. Returns its PID or -1. */
static pid_t start_keeper(const struct awaited *awaited) {
    static _Alignas(64) char stack[16384];
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(keep, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)awaited);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return pid;
}

int cbaton_execvp(const char *file, char *const argv[], pid_t watcher) {
    static struct awaited awaited;
    pid_t keeper = -1;
    awaited.process[0] = cbaton_pidfd_open(getpid());
    awaited.process[1] = watcher > 0 ? cbaton_pidfd_open(watcher) : -1;
    if (awaited.process[0] >= 0 && awaited.process[1] >= 0) keeper = start_keeper(&awaited);
    execvp(file, argv);
    int code = errno;
    if (keeper > 0) {
        kill(keeper, SIGKILL);
        while (waitpid(keeper, NULL, 0) < 0 && errno == EINTR) {
        }
    }
    for (int i = 0; i < 2; i++)
        if (awaited.process[i] >= 0) close(awaited.process[i]);
    errno = code;
    return -1;
}
