#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What caller and callee know of each other. Freed by the caller when all
 * calls are done, and by nobody when it has gone on without one. */
struct bounded {
    void (*body)(void *, uint32_t);
    void *context;
    uint32_t first, count;
    /* Twice the index of the call under way; plus one when the caller has gone
     * on without it. A futex. */
    uint32_t progress;
};

/* Whether the thread that was last left behind has stopped. A futex. */
static uint32_t stopped;

#define STOPPING_SIGNAL SIGRTMAX

static void wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

/* Waits until *WORD is no longer VALUE, for NANOSECONDS at most; may return
 * earlier. */
static void wait_while(uint32_t *word, uint32_t value, int64_t nanoseconds) {
    struct timespec time = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &time, NULL, 0);
}

static void stop_for_ever(void) {
    sigset_t all;
    sigfillset(&all);
    __atomic_store_n(&stopped, 1, __ATOMIC_RELEASE);
    wake(&stopped);
    for (;;) sigsuspend(&all);
}

static void on_stop(int number) {
    (void)number;
    stop_for_ever();
}

/* ---- A call that crashes is left behind like one that hangs: the guest is this
 * process', and goes on. Its thread is the only one that may; a crash of any other
 * is what it is without this. The handlers stay, and are looked for before each call, as
 * a module may have put one of its own in their place. */

static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT};
#define CRASHES (sizeof crashes / sizeof crashes[0])
static struct sigaction before[CRASHES];
static pid_t called;        /* the thread of the call; 0 when there is none */
static int crashed;         /* the signal by which it has crashed */
static uint32_t *progress_of_call; /* of the call: its caller waits for it */

static void on_crash(int number, siginfo_t *info, void *context) {
    if ((pid_t)syscall(SYS_gettid) == __atomic_load_n(&called, __ATOMIC_ACQUIRE)) {
        /* Guest memory that was lost is no fault of the call. */
        if (number == SIGBUS && cbaton_guard_bus_error(info)) return;
        __atomic_store_n(&crashed, number, __ATOMIC_RELEASE);
        wake(progress_of_call);
        stop_for_ever();
    }
    /* A handler of a module's may call the one that it has found. */
    static __thread int depth;
    for (size_t i = 0; i < CRASHES; i++) {
        if (crashes[i] != number) continue;
        if (depth) {
            signal(number, SIG_DFL);
            raise(number);
            return;
        }
        depth++;
        if (before[i].sa_flags & SA_SIGINFO) {
            before[i].sa_sigaction(number, info, context);
        } else if (before[i].sa_handler != SIG_DFL && before[i].sa_handler != SIG_IGN) {
            before[i].sa_handler(number);
        } else {
            sigaction(number, &before[i], NULL);
            /* The instruction that has failed fails again, and a core dump shows it. */
            if (info->si_code <= 0 || number == SIGTRAP) raise(number);
        }
        depth--;
    }
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < CRASHES; i++) {
        struct sigaction now;
        if (sigaction(crashes[i], NULL, &now) != 0 || now.sa_sigaction == on_crash) continue;
        before[i] = now;
        sigaction(crashes[i], &action, NULL);
    }
}

static void catch_crashes(uint32_t *progress) {
    install();
    progress_of_call = progress;
    __atomic_store_n(&crashed, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&called, 0, __ATOMIC_RELEASE);
}

static void stop_catching(void) { __atomic_store_n(&called, 0, __ATOMIC_RELEASE); }

static void *run(void *argument) {
    struct bounded *calls = argument;
    __atomic_store_n(&called, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    for (uint32_t index = calls->first; index < calls->count; index++) {
        calls->body(calls->context, index);
        uint32_t expected = index << 1;
        if (!__atomic_compare_exchange_n(&calls->progress, &expected, (index + 1) << 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            stop_for_ever();
    }
    wake(&calls->progress);
    return NULL;
}

/* Starts THREAD with every signal blocked that is not its own fault, and is
 * not the one that stops it. */
static int start(pthread_t *thread, struct bounded *calls) {
    sigset_t blocked, before;
    sigfillset(&blocked);
    const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, STOPPING_SIGNAL};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&blocked, own[i]);
    pthread_attr_t attributes;
    int code = pthread_attr_init(&attributes);
    if (code) return code;
    pthread_attr_setstacksize(&attributes, CBATON_BOUNDED_STACK);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    code = pthread_create(thread, &attributes, run, calls);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return code;
}

/* Stops a thread where it is. One that cannot be interrupted now, in the
 * kernel, is stopped when it comes out of it. */
static void stop(pthread_t thread) {
    struct sigaction action = {.sa_handler = on_stop};
    sigfillset(&action.sa_mask);
    sigaction(STOPPING_SIGNAL, &action, NULL);
    __atomic_store_n(&stopped, 0, __ATOMIC_RELEASE);
    if (pthread_kill(thread, STOPPING_SIGNAL)) return;
    int64_t deadline = cbaton_monotonic_ns() + 100000000;
    while (!__atomic_load_n(&stopped, __ATOMIC_ACQUIRE)) {
        int64_t left = deadline - cbaton_monotonic_ns();
        if (left <= 0) return;
        wait_while(&stopped, 0, left);
    }
}

uint32_t cbaton_call_bounded(
    void (*body)(void *context, uint32_t index), void *context, uint32_t first, uint32_t count, int64_t limit,
    int *signal) {
    *signal = 0;
    struct bounded *calls = malloc(sizeof *calls);
    pthread_t thread;
    if (calls) *calls = (struct bounded){body, context, first, count, first << 1};
    if (calls) catch_crashes(&calls->progress);
    if (!calls || start(&thread, calls)) {
        if (calls) stop_catching();
        free(calls);
        for (uint32_t index = first; index < count; index++) body(context, index);
        return count;
    }
    uint32_t seen = first << 1;
    int64_t deadline = cbaton_monotonic_ns() + limit;
    for (;;) {
        uint32_t progress = __atomic_load_n(&calls->progress, __ATOMIC_ACQUIRE);
        if (progress == count << 1) {
            pthread_join(thread, NULL);
            stop_catching();
            free(calls);
            return count;
        }
        int64_t left = deadline - cbaton_monotonic_ns();
        *signal = __atomic_load_n(&crashed, __ATOMIC_ACQUIRE);
        if (*signal) {
            /* It is in the handler, and stays there. */
            __atomic_store_n(&calls->progress, progress | 1, __ATOMIC_RELEASE);
            stop_catching();
            pthread_detach(thread);
            return progress >> 1;
        }
        if (left > 0) {
            wait_while(&calls->progress, progress, left);
        } else if (progress != seen) {
            seen = progress;
            deadline = cbaton_monotonic_ns() + limit;
        } else if (__atomic_compare_exchange_n(
                       &calls->progress, &progress, progress | 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            stop(thread);
            stop_catching();
            pthread_detach(thread);
            return progress >> 1;
        }
    }
}
