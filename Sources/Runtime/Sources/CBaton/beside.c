#define _GNU_SOURCE
#include "cbaton.h"
#include "sanitizers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Executes a program in this process while a child goes on with its memory.
 *
 * The child is made by clone(2) with CLONE_VM, and neither CLONE_THREAD nor
 * CLONE_VFORK. It waits on a stack of its own, with system calls only, for the
 * end of a pipe that the exec closes. From then on the memory is its own, and it
 * goes on upon the stack of the call, which the process has left behind. */

/* What the kernel knows of a thread by address, and has to be told again by the
 * child, which is another thread to it. */
struct thread_state {
    int *tid; /* where glibc keeps the thread's id; NULL when that is not found */
    void *robust_list;
    size_t robust_length;
    stack_t signal_stack;
};

/* One call at a time. Nothing of it is on the stack, which the process uses on
 * while the child waits. */
static struct {
    const struct cbaton_execution *what;
    int64_t limit;
    int64_t awake_until; /* as of CLOCK_MONOTONIC in nanoseconds; 0 for not at all */
    void *registers[5]; /* of __builtin_setjmp */
    int executed[2];    /* the pipe that the exec closes */
    int process;        /* a pidfd of the process that executes */
    int outcome;        /* one of those below; atomic, as both tasks may find one at the same moment */
    int failure;        /* an errno value, when there is no child */
    unsigned long timer_slack;
    sigset_t mask;
    struct thread_state thread;
    int is_placed;  /* atomic: the child runs where it waits */
    int processor;  /* where the process calls; -1 when that is not known */
    cpu_set_t cpus; /* those that the process may use */
} call;

enum { OPEN, FAILED, LATE };

/* Decides which of the two tasks goes on in this memory: once. Returns whether it is as asked for. */
static int decide(int outcome) {
    int open = OPEN;
    return __atomic_compare_exchange_n(&call.outcome, &open, outcome, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static _Alignas(64) char waiting_stack[16384];

/* Nanoseconds in which a child that was killed is sure to have ended. */
static const int64_t end_limit = 1000000000;

static int *find_tid(void) {
    int *address = NULL;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    if (prctl(PR_GET_TID_ADDRESS, &address) == 0 && address && *address == tid) return address;
    /* A kernel without checkpoint and restore does not tell. It is in the
     * thread's descriptor. */
    int *words = __builtin_thread_pointer();
    for (size_t i = 0; i < 256; i++)
        if (words[i] == tid) return &words[i];
    return NULL;
}

static void get_thread_state(struct thread_state *state) {
    state->tid = find_tid();
    if (syscall(SYS_get_robust_list, 0, &state->robust_list, &state->robust_length) != 0) state->robust_list = NULL;
    if (sigaltstack(NULL, &state->signal_stack) != 0) state->signal_stack.ss_flags = SS_DISABLE;
}

static void set_thread_state(const struct thread_state *state) {
    /* The exec of the process that shared the memory has cleared it. */
    if (state->tid) {
        *state->tid = (int)syscall(SYS_gettid);
        syscall(SYS_set_tid_address, state->tid);
    }
    if (state->robust_list) syscall(SYS_set_robust_list, state->robust_list, state->robust_length);
    if (!(state->signal_stack.ss_flags & SS_DISABLE)) {
        stack_t own = state->signal_stack;
        own.ss_flags = 0;
        sigaltstack(&own, NULL);
    }
    if (__rseq_size) {
        struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
        area->cpu_id_start = 0;
        area->cpu_id = (uint32_t)RSEQ_CPU_ID_UNINITIALIZED;
        unsigned length = __rseq_size < 32 ? 32 : __rseq_size;
        if (syscall(SYS_rseq, area, length, 0, RSEQ_SIG) != 0)
            area->cpu_id = (uint32_t)RSEQ_CPU_ID_REGISTRATION_FAILED;
    }
}

/* ---- In the child, beside the process. Every signal is blocked. */

/* Nanoseconds in which the child does not sleep. A child that sleeps leaves its processor, to which the
 * exec then moves the process; and both share it for a tick or two of the kernel's, while another is idle. */
static const int64_t awake_time = 2000000;

/* Nanoseconds that the process waits before its exec for the child to run on another processor. */
static const int64_t placing_time = 300000;

/* Leaves the process its processor, when the child may use another one. The exec waits for the process's other threads to
 * end. When the child has taken the processor meanwhile, both share it until a tick of the kernel's finds that another is
 * idle: 4 ms. Returns whether `stay_anywhere` has to follow. */
static int stay_away(void) {
    cpu_set_t others = call.cpus;
    if (!call.awake_until || call.processor < 0) return 0;
    CPU_CLR(call.processor, &others);
    return CPU_COUNT(&others) > 0 && syscall(SYS_sched_setaffinity, 0, sizeof others, &others) == 0;
}

static void stay_anywhere(void) { syscall(SYS_sched_setaffinity, 0, sizeof call.cpus, &call.cpus); }

/* Returns what ppoll(2) does.
 * limit: in nanoseconds; 0 for none. */
static long await_exec(int64_t nanoseconds) {
    struct pollfd end = {.fd = call.executed[0], .events = POLLIN};
    struct timespec now = {0}, limit = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    /* The exec may wait for a thread that the kernel has made in this process for an accelerator, and that needs a processor. */
    for (int64_t until = call.awake_until; until && cbaton_monotonic_ns() < until; syscall(SYS_sched_yield))
        if (syscall(SYS_ppoll, &end, 1, &now, NULL, 0) > 0) return 1;
    return syscall(SYS_ppoll, &end, 1, nanoseconds ? &limit : NULL, NULL, 0);
}

static CBATON_NEVER_LEFT int wait_for_exec(void *unused) {
    (void)unused;
    /* errno is shared, and nobody's now: the process reads what it needs at once. */
    syscall(SYS_close, call.executed[1]);
    int is_away = stay_away();
    __atomic_store_n(&call.is_placed, 1, __ATOMIC_RELEASE);
    if (await_exec(call.limit) <= 0) {
        if (decide(LATE)) {
            /* Also one that cannot be interrupted runs no more of its program. */
            syscall(SYS_pidfd_send_signal, call.process, SIGKILL, NULL, 0);
        } else {
            /* The exec has just failed, and the process ends this task, unless something ends the process first. */
            await_exec(0);
        }
    }
    if (is_away) stay_anywhere();
    __builtin_longjmp(call.registers, 1);
}

/* ---- In the process, beside the child. */

/* An exec moves the process to the processor that is the idlest (sched_exec() of Linux' kernel/sched/core.c). That must
 * not be the one to which the child is on its way. */
static void await_placing(void) {
    if (!call.awake_until) return;
    for (int64_t until = cbaton_monotonic_ns() + placing_time;
         !__atomic_load_n(&call.is_placed, __ATOMIC_ACQUIRE) && cbaton_monotonic_ns() < until;)
        syscall(SYS_sched_yield);
}

/* What only the program gets. Returns an errno value. */
static CBATON_NEVER_LEFT int execute(const struct cbaton_execution *what) {
    sigset_t mask = call.mask, stops;
    cbaton_stop_signals(&stops);
    sigorset(&mask, &mask, &stops);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    prctl(PR_SET_TIMERSLACK, what->timer_slack);
    /* Modules and libraries may have opened files of their own without FD_CLOEXEC. */
    if (cbaton_cloexec_from(3) != 0) return errno;
    for (size_t i = 0; i < what->count; i++)
        if (fcntl(what->fds[i], F_SETFD, 0) != 0) return errno;
    execvpe(what->argv[0], what->argv, what->environment);
    return errno;
}

/* Returns only when nothing came of it. */
static CBATON_NEVER_LEFT __attribute__((noinline)) int start(void) {
    pid_t placeholder = call.what->placeholder;
    int flags = CLONE_VM | SIGCHLD | (placeholder ? CLONE_PARENT : 0);
    pid_t child = clone(wait_for_exec, waiting_stack + sizeof waiting_stack, flags, NULL);
    if (child < 0) return errno;
    if (placeholder) cbaton_tell_placeholder(placeholder, child, 1);
    /* Meanwhile the child finds its processor. */
    if (call.what->will_be_owner) call.what->will_be_owner(child);
    await_placing();
    int code = execute(call.what);
    if (!decide(FAILED)) {
        /* The child goes on upon this stack as soon as it has killed this task. If it does not, it was killed itself. */
        const struct timespec limit = {.tv_sec = end_limit / 1000000000};
        syscall(SYS_ppoll, NULL, 0, &limit, NULL, 0);
        _exit(1);
    }
    /* Before the end of the one that was named. */
    if (call.what->will_be_owner) call.what->will_be_owner(getpid());
    /* It must see no end of the pipe. */
    kill(child, SIGKILL);
    cbaton_await_child(child, end_limit);
    for (size_t i = 0; i < call.what->count; i++) fcntl(call.what->fds[i], F_SETFD, FD_CLOEXEC);
    prctl(PR_SET_TIMERSLACK, call.timer_slack);
    return code;
}

/* Returns twice: in the child 1; before that, and only if there is none, 0. Its
 * frame stays as it is while the process is in `start`. */
static __attribute__((noinline)) int split(void) {
    if (__builtin_setjmp(call.registers)) return 1;
    int failure = start();
    /* No tail call, which would give up the frame. */
    __asm__ volatile("" ::: "memory");
    call.failure = failure;
    return 0;
}

int cbaton_execute_beside(const struct cbaton_execution *what, int64_t limit, int *process) {
    sigset_t all;
    call.what = what;
    /* PID 1 is killed by nobody of its namespace, so that an exec which takes its time has to be waited for: the child
     * must not go on upon a stack that the process may come back to. */
    call.limit = getpid() == 1 ? 0 : limit;
    call.outcome = OPEN;
    call.is_placed = 0;
    call.awake_until = cbaton_processors() > 1 ? cbaton_monotonic_ns() + awake_time : 0;
    call.timer_slack = cbaton_timer_slack();
    call.processor = sched_getaffinity(0, sizeof call.cpus, &call.cpus) == 0 ? sched_getcpu() : -1;
    call.process = cbaton_pidfd_open(getpid());
    if (call.process < 0) return -1;
    if (pipe2(call.executed, O_CLOEXEC) != 0) {
        int code = errno;
        close(call.process);
        errno = code;
        return -1;
    }
    get_thread_state(&call.thread);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &call.mask);
    if (split()) {
        set_thread_state(&call.thread);
        close(call.executed[0]);
        *process = call.process;
        sigprocmask(SIG_SETMASK, &call.mask, NULL);
        return call.outcome == LATE ? CBATON_EXEC_IS_LATE : CBATON_EXECUTED;
    }
    close(call.executed[0]);
    close(call.executed[1]);
    close(call.process);
    sigprocmask(SIG_SETMASK, &call.mask, NULL);
    errno = call.failure;
    return -1;
}
