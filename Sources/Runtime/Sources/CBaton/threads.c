#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/resource.h>

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
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + work->increment);
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
    int knows = sched_getaffinity(0, sizeof work.cpus, &work.cpus) == 0 && cpu >= 0;
    if (knows && start_thread(&thread, PTHREAD_CREATE_JOINABLE, &here, run_nicely, &work) == 0) {
        pthread_join(thread, NULL);
    } else {
        body(context);
    }
}
