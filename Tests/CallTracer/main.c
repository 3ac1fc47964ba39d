/* Stops or kills one of the two VMMs of an update at a system call, by its number.
 *
 *   call-tracer PID old|new kill|stop NUMBER
 *
 * PID is the VMM, which is about to be updated. Says `ready` when it is traced, and one
 * line at the end:
 *
 *   done CALL     it was at the entry of that call, which has not been made
 *   late CALL     the same, of an old VMM when the new one has the guest
 *   ended COUNT   it ended by itself, or the new one got the guest, after so many calls
 *
 * The new VMM's calls count from its exec on, the old one's from when it is a child. A wait or a look that is
 * repeated counts once: how often depends on how long the other VMM takes. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "call-tracer: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Whether a call is the report that the guest is the caller's (UpdateStage.committed
 * behind the eight bytes of the secret). */
static int is_commit(pid_t pid, const struct __ptrace_syscall_info *info) {
    if (info->entry.nr != SYS_write || info->entry.args[2] != 9) return 0;
    char letter = 0;
    struct iovec here = {&letter, 1}, there = {(void *)(uintptr_t)(info->entry.args[1] + 8), 1};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == 1 && letter == 'C';
}

/* Whether a call only looks for something, as the one before did. */
static int is_repeated(const struct __ptrace_syscall_info *info) {
    static unsigned long long last = ~0ull;
    const unsigned long long call = info->entry.nr;
    const int looks = call == SYS_recvmsg || call == SYS_epoll_pwait2 || call == SYS_poll || call == SYS_ppoll ||
                      call == SYS_sched_yield;
    const int repeated = looks && call == last;
    last = call;
    return repeated;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: call-tracer PID old|new kill|stop NUMBER\n");
        return 2;
    }
    const pid_t vmm = (pid_t)atoi(argv[1]);
    const int wants_old = strcmp(argv[2], "old") == 0;
    const int number = strcmp(argv[3], "stop") == 0 ? SIGSTOP : SIGKILL;
    const long wanted = atol(argv[4]);
    const long options =
        PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
    if (ptrace(PTRACE_SEIZE, vmm, 0, options) != 0) fail("ptrace");
    /* System calls are seen from the first stop on. */
    if (ptrace(PTRACE_INTERRUPT, vmm, 0, 0) != 0) fail("ptrace");
    pid_t counted = 0;
    long count = 0;
    int is_ready = 0, is_committed = 0;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0 && errno == EINTR) continue;
        if (pid < 0) fail("wait");
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (pid != counted && pid != vmm) continue;
            printf("ended %ld\n", count);
            return 0;
        }
        int stop = WSTOPSIG(status), event = status >> 16;
        long passed = 0;
        if (event == PTRACE_EVENT_STOP && pid == vmm && !is_ready) {
            is_ready = 1;
            printf("ready\n");
            fflush(stdout);
        } else if (event == PTRACE_EVENT_FORK && pid == vmm && wants_old) {
            unsigned long child = 0;
            ptrace(PTRACE_GETEVENTMSG, pid, 0, &child);
            counted = (pid_t)child;
        } else if (event == PTRACE_EVENT_EXEC && pid == vmm) {
            if (!wants_old) counted = pid;
        } else if (stop == (SIGTRAP | 0x80)) {
            struct __ptrace_syscall_info info = {0};
            ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info);
            const int is_entry = info.op == PTRACE_SYSCALL_INFO_ENTRY;
            if (is_entry && pid == vmm && is_commit(pid, &info)) {
                is_committed = 1;
                if (!wants_old) {
                    printf("ended %ld\n", count);
                    return 0;
                }
            }
            if (is_entry && pid == counted && !is_repeated(&info) && ++count == wanted) {
                kill(pid, number);
                /* Whatever is traced goes on when this process ends. */
                printf("%s %llu\n", is_committed ? "late" : "done", (unsigned long long)info.entry.nr);
                return 0;
            }
        } else if (event == PTRACE_EVENT_STOP && stop != SIGTRAP) {
            ptrace(PTRACE_LISTEN, pid, 0, 0);
            continue;
        } else if (event == 0) {
            passed = stop;
        }
        ptrace(PTRACE_SYSCALL, pid, 0, passed);
    }
}
