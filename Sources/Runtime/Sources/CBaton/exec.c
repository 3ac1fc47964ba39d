#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
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
