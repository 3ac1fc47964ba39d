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

/* Nanoseconds that a thread under SCHED_IDLE may wait for a processor beyond twice what it has had of one. */
#define IDLE_PATIENCE 100000000
/* Nanoseconds between two looks whether it does. */
#define IDLE_LOOK 50000000

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
};

static void *run_nicely(void *argument) {
    struct nice_work *work = argument;
    sched_setaffinity(0, sizeof work->cpus, &work->cpus);
    /* On Linux a nice value is a thread's. Without the change the work is done all the same. */
    int nice = getpriority(PRIO_PROCESS, 0) + work->increment;
    if (nice > 19) nice = 19;
    setpriority(PRIO_PROCESS, 0, nice);
    /* A processor that does nothing else counts as idle with SCHED_IDLE: what wakes up is put there, and not in the
     * place of the guest on another one. It takes RLIMIT_NICE or CAP_SYS_NICE to leave that again, as it takes to
     * lower a nice value. */
    if (sched_getscheduler(0) == SCHED_OTHER && setpriority(PRIO_PROCESS, 0, nice - 1) == 0) {
        setpriority(PRIO_PROCESS, 0, nice);
        sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    }
    work->body(work->context);
    return NULL;
}

void cbaton_run_nicely(int increment, void (*body)(void *), void *context) {
    struct nice_work work = {increment, body, context, {{0}}};
    pthread_t thread;
    cpu_set_t here;
    CPU_ZERO(&here);
    int cpu = sched_getcpu();
    if (cpu >= 0) CPU_SET(cpu, &here);
    /* It begins where the caller is, which only waits from now on: on another processor it might share that with the
     * guest, for a tick of the kernel's. */
    if (sched_getaffinity(0, sizeof work.cpus, &work.cpus) || cpu < 0 ||
        start_thread(&thread, PTHREAD_CREATE_JOINABLE, &here, run_nicely, &work)) {
        body(context);
        return;
    }
    int64_t begin = clock_ns(CLOCK_MONOTONIC), look = begin + IDLE_PATIENCE, had = 0;
    struct timespec until;
    clockid_t clock;
    do {
        until = (struct timespec){look / 1000000000, look % 1000000000};
        if (pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until) != ETIMEDOUT) return;
        look = clock_ns(CLOCK_MONOTONIC) + IDLE_LOOK;
        if (pthread_getcpuclockid(thread, &clock) == 0) had = clock_ns(clock);
    } while (clock_ns(CLOCK_MONOTONIC) - begin < 2 * had + IDLE_PATIENCE);
    /* Others' work leaves nothing for it, and it may never come to see that itself: its nice value gets it a share. */
    pthread_setschedparam(thread, SCHED_OTHER, &(struct sched_param){0});
    pthread_join(thread, NULL);
}
