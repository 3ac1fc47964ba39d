#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

/* Threads beside the main thread, for a time: what they are to do, and how they differ. */

/* Starts a thread in which every signal is blocked, on one of CPUS, if given. Returns 0 or an errno value. */
static int start_thread(
    pthread_t *thread, int state, const cpu_set_t *cpus, void *(*body)(void *), void *argument) {
    sigset_t all, before;
    pthread_attr_t attributes;
    int code = pthread_attr_init(&attributes);
    if (code) return code;
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_attr_setdetachstate(&attributes, state);
    if (cpus) pthread_attr_setaffinity_np(&attributes, sizeof *cpus, cpus);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return code;
}

/* ---- For as long as its body takes. */

struct work {
    void (*body)(void *);
    void *context;
};

static void *run_work(void *argument) {
    struct work work = *(struct work *)argument;
    free(argument);
    work.body(work.context);
    return NULL;
}

int cbaton_start_thread(pthread_t *thread, void (*body)(void *), void *context) {
    struct work *work = malloc(sizeof *work);
    if (!work) return ENOMEM;
    *work = (struct work){body, context};
    int code = start_thread(thread, PTHREAD_CREATE_JOINABLE, NULL, run_work, work);
    if (code) free(work);
    return code;
}

/* ---- With descriptors of its own. */

/* What such a thread is given; gone when it has its descriptors. */
struct start {
    void (*body)(void *);
    void *context;
    int code;
    sem_t done;
};

static void *run_apart(void *argument) {
    struct start *start = argument;
    void (*body)(void *) = start->body;
    void *context = start->context;
    /* The one system call for this that every sandbox allows. */
    int code = close_range(3, ~0u, CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) == 0 ? 0 : errno;
    start->code = code;
    sem_post(&start->done);
    if (!code) body(context);
    return NULL;
}

int cbaton_run_apart(void (*body)(void *), void *context) {
    struct start start = {.body = body, .context = context};
    pthread_t thread;
    sem_init(&start.done, 0, 0);
    int code = start_thread(&thread, PTHREAD_CREATE_DETACHED, NULL, run_apart, &start);
    if (code) return code;
    while (sem_wait(&start.done) != 0) {
    }
    return start.code;
}

/* ---- At a lower priority. */

/* Of a thread that runs under SCHED_IDLE: when it began, in nanoseconds of CLOCK_MONOTONIC; else 0. */
static __thread int64_t idle_since;
/* Nanoseconds that it may wait for a processor beyond as many as it has had. */
#define IDLE_PATIENCE 100000000

static int64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

struct nice_work {
    int increment;
    void (*body)(void *);
    void *context;
    cpu_set_t cpus; /* the caller's */
    int may_idle;
    int is_done;
};

/* Takes SCHED_IDLE, if that can be left again: without the right to, for which RLIMIT_NICE or CAP_SYS_NICE is needed,
 * the thread is of no more use. */
static int become_idle(void) {
    const struct sched_param none = {0};
    if (sched_getscheduler(0) != SCHED_OTHER || sched_setscheduler(0, SCHED_IDLE, &none)) return 1;
    if (sched_setscheduler(0, SCHED_OTHER, &none)) return 0;
    if (!sched_setscheduler(0, SCHED_IDLE, &none)) idle_since = clock_ns(CLOCK_MONOTONIC);
    return 1;
}

static void *run_nicely(void *argument) {
    struct nice_work *work = argument;
    sched_setaffinity(0, sizeof work->cpus, &work->cpus);
    /* On Linux a nice value is a thread's. Without the change the work is done all the same. */
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + work->increment);
    /* A processor that does nothing else counts as idle with this: what wakes up is put there, and not in the place of
     * the guest on another one. */
    if (work->may_idle && !become_idle()) return NULL;
    work->body(work->context);
    work->is_done = 1;
    return NULL;
}

void cbaton_let_others_run(void) {
    sched_yield();
    if (idle_since == 0) return;
    int64_t had = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    if (clock_ns(CLOCK_MONOTONIC) - idle_since < 2 * had + IDLE_PATIENCE) return;
    /* Other processors' work leaves nothing for it: its nice value gets it a share. */
    idle_since = 0;
    sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){0});
}

void cbaton_run_nicely(int increment, void (*body)(void *), void *context) {
    struct nice_work work = {increment, body, context, {{0}}, 1, 0};
    pthread_t thread;
    cpu_set_t here;
    CPU_ZERO(&here);
    int cpu = sched_getcpu();
    if (cpu >= 0) CPU_SET(cpu, &here);
    /* It begins where the caller is, which only waits from now on: on another processor it might share that with the
     * guest, for a tick of the kernel's. */
    int knows = sched_getaffinity(0, sizeof work.cpus, &work.cpus) == 0 && cpu >= 0;
    for (; knows && !work.is_done && work.may_idle >= 0; work.may_idle--) {
        if (start_thread(&thread, PTHREAD_CREATE_JOINABLE, &here, run_nicely, &work) != 0) break;
        pthread_join(thread, NULL);
    }
    if (!work.is_done) body(context);
}
