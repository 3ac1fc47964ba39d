/* A placeholder: what is left of the process that was started as the VM, when the
 * guest goes on in another one. It has that process' PID for whoever knows the VM by
 * it: a shell, a terminal, a service manager, a namespace. */
#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The signal that brings news, and the option by which a process is executed as one. */
#define CBATON_PLACEHOLDER_SIGNAL (SIGRTMAX - 1)
#define CBATON_PLACEHOLDER_OPTION "-placeholder-for"

/* Those that have the guest, or may have it soon: two in an update, beside those that
 * have ended and that nobody has come to. The first is the one that signals are for. */
#define MOST 8
static pid_t vmms[MOST];
static int count;

int cbaton_is_child(pid_t pid) {
    siginfo_t info;
    return pid > 0 && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

void cbaton_tell_placeholder(pid_t placeholder, pid_t vmm, int may_have_guest) {
    siginfo_t info = {.si_signo = CBATON_PLACEHOLDER_SIGNAL, .si_code = SI_QUEUE};
    info.si_value.sival_int = may_have_guest ? vmm : -vmm;
    syscall(SYS_rt_sigqueueinfo, placeholder, CBATON_PLACEHOLDER_SIGNAL, &info);
}

/* Returns whether it was one of them. */
static int forget(pid_t vmm) {
    for (int i = 0; i < count; i++) {
        if (vmms[i] != vmm) continue;
        for (count--; i < count; i++) vmms[i] = vmms[i + 1];
        return 1;
    }
    return 0;
}

/* Several updates may have failed before this process had its turn. */
static void forget_ended(void) {
    for (int i = count; i-- > 0;) {
        siginfo_t info = {.si_pid = 0};
        if (waitid(P_PID, (id_t)vmms[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0) forget(vmms[i]);
    }
}

static void hear(const siginfo_t *info) {
    int vmm = info->si_value.sival_int;
    if (vmm < 0) forget(-vmm);
    /* Whoever may send signals here can name any process: only a child is followed. */
    if (vmm <= 0 || !cbaton_is_child(vmm)) return;
    forget(vmm);
    if (count == MOST) forget_ended();
    if (count < MOST) vmms[count++] = vmm;
}

/* Ends as a process with this wait status has ended. */
static _Noreturn void end_like(int status) {
    if (WIFSIGNALED(status)) {
        const struct rlimit none = {0, 0};
        sigset_t set;
        int number = WTERMSIG(status);
        /* The memory that somebody may want to see was another's. */
        setrlimit(RLIMIT_CORE, &none);
        signal(number, SIG_DFL);
        sigemptyset(&set);
        sigaddset(&set, number);
        raise(number);
        sigprocmask(SIG_UNBLOCK, &set, NULL);
        _exit(128 + number); /* PID 1 of a namespace ends by no signal */
    }
    _exit(WEXITSTATUS(status));
}

static void hear_news(void) {
    const struct timespec now = {0, 0};
    siginfo_t info;
    sigset_t news;
    sigemptyset(&news);
    sigaddset(&news, CBATON_PLACEHOLDER_SIGNAL);
    while (sigtimedwait(&news, &info, &now) > 0) hear(&info);
}

/* Takes the ends of all children. Returns whether there are others. */
static int reap(int *status, uint64_t *stops) {
    for (;;) {
        int how = 0;
        pid_t ended = waitpid(-1, &how, WNOHANG);
        if (ended < 0 && errno == EINTR) continue;
        /* Whoever has handed the guest over, or made another VMM, has said so before its end. */
        hear_news();
        if (ended <= 0) return ended == 0;
        int was_first = count > 0 && vmms[0] == ended;
        if (!forget(ended)) continue;
        *status = how;
        /* What it had not come to is for the one that has the guest now. */
        for (int number = 1; was_first && count > 0 && number < 64; number++)
            if (*stops >> number & 1) kill(vmms[0], number);
    }
}

/* Signals that would end this process, but are none to stop a VM: the VM lives on. */
static void ignore_others(void) {
    static const int others[] = {SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGPIPE, SIGIO, SIGPWR, SIGSTKFLT};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) signal(others[i], SIG_IGN);
}

static sigset_t wait_set(void) {
    sigset_t set;
    cbaton_stop_signals(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, CBATON_PLACEHOLDER_SIGNAL);
    return set;
}

static _Noreturn void be_placeholder(pid_t vmm, int ready) {
    sigset_t set = wait_set();
    sigprocmask(SIG_SETMASK, &set, NULL);
    ignore_others();
    /* Not ignored, and so not discarded either. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, NULL);
    prctl(PR_SET_NAME, "baton-place");
    if (chdir("/") != 0) { /* It may not. */
    }
    if (cbaton_is_child(vmm)) vmms[count++] = vmm;
    /* The end of PID 1 would be the end of all. */
    int waits_for_all = count == 0 && getpid() == 1;
    if (count == 0 && !waits_for_all) _exit(0);
    const char none = 0;
    if (ready >= 0) send(ready, &none, 1, MSG_NOSIGNAL);
    syscall(SYS_close_range, 0u, ~0u, 0u);

    int status = 0;
    uint64_t stops = 0;
    for (;;) {
        int has_others = reap(&status, &stops);
        if (count == 0 && !(waits_for_all && has_others)) end_like(status);
        siginfo_t info;
        int number = sigwaitinfo(&set, &info);
        if (number == CBATON_PLACEHOLDER_SIGNAL) hear(&info);
        if (number <= 0 || number == SIGCHLD || number == CBATON_PLACEHOLDER_SIGNAL) continue;
        reap(&status, &stops);
        stops |= 1ull << number;
        if (count > 0 && kill(vmms[0], number) == 0) continue;
        if (waits_for_all) kill(-1, number);
    }
}

void cbaton_become_placeholder(pid_t vmm, int ready) {
    sigset_t set = wait_set();
    sigprocmask(SIG_BLOCK, &set, NULL);
    ignore_others();
    if (ready >= 0 && dup2(ready, 0) == 0) ready = 0;
    else ready = -1;
    syscall(SYS_close_range, 1u, ~0u, 0u);
    if (ready < 0) close(0);
    char pid[16];
    snprintf(pid, sizeof pid, "%d", (int)vmm);
    char *const argv[] = {"baton", CBATON_PLACEHOLDER_OPTION, pid, NULL};
    execve("/proc/self/exe", argv, environ);
    be_placeholder(vmm, ready);
}

void cbaton_be_placeholder_if_asked(void) {
    if (cbaton_argument_count() != 3 || strcmp(cbaton_argument(1), CBATON_PLACEHOLDER_OPTION) != 0) return;
    struct stat status;
    int ready = fstat(0, &status) == 0 && S_ISSOCK(status.st_mode) ? 0 : -1;
    be_placeholder((pid_t)atoi(cbaton_argument(2)), ready);
}
