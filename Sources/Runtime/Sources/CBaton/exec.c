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

/* What is left of the process waits for others: it has no descriptors, and waits for
 * the signals in SET, of children and to stop. */
static void let_go_of_all(sigset_t *set) {
    cbaton_stop_signals(set);
    sigaddset(set, SIGCHLD);
    sigprocmask(SIG_SETMASK, set, NULL);
    /* Not ignored, and so not discarded either. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, NULL);
    syscall(SYS_close_range, 0u, ~0u, 0u);
}

void cbaton_keep_namespace(void) {
    sigset_t set;
    let_go_of_all(&set);
    for (;;) {
        pid_t ended;
        do ended = waitpid(-1, NULL, WNOHANG);
        while (ended > 0);
        if (ended < 0 && errno == ECHILD) _exit(0);
        int number = sigwaitinfo(&set, NULL);
        if (number > 0 && number != SIGCHLD) kill(-1, number);
    }
}

void cbaton_end_like(pid_t child) {
    sigset_t set;
    let_go_of_all(&set);
    for (;;) {
        int status = 0;
        pid_t ended = child > 0 ? waitpid(child, &status, WNOHANG) : -1;
        if (ended == child) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        if (ended < 0 && errno != EINTR) _exit(0);
        int number = sigwaitinfo(&set, NULL);
        if (number > 0 && number != SIGCHLD) kill(child, number);
    }
}
