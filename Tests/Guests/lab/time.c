// The guest's work with clocks, timers and signals.

#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include "lab.h"

// Time: it never goes back, on one CPU or between two; sleeps last; the clocks stay together.

void clock_work(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        FAIL("CPU %d: %s", cpu, strerror(errno));
    uint64_t counter = __builtin_ia32_rdtsc();
    for (;;) {
        for (int i = 0; i < 200; i++) {
            uint64_t earlier = counter;
            counter = __builtin_ia32_rdtsc();
            if (counter < earlier)
                FAIL("CPU %d: the time-stamp counter went back by %lu", cpu, earlier - counter);
            uint64_t before = __atomic_load_n(&shared->latest, __ATOMIC_SEQ_CST), time = now(CLOCK_MONOTONIC);
            if (time < before)
                FAIL("CPU %d: the time went back by %lu ns", cpu, before - time);
            while (before < time && !__atomic_compare_exchange_n(
                       &shared->latest, &before, time, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                ;
            add(&shared->readings);
        }
        usleep(5000);
    }
}

// The time-stamp counter goes at the rate of the other clocks, from one second to the next.
static void check_rate(uint64_t *time, uint64_t *counter, double *rate)
{
    uint64_t new_time = now(CLOCK_MONOTONIC), new_counter = __builtin_ia32_rdtsc();
    if (new_time - *time < 1000000000)
        return;
    double found = (double)(new_counter - *counter) / (new_time - *time);
    // A reading may be late, in an emulator by tens of ms.
    if (*rate && (found < *rate * 0.8 || found > *rate * 1.25))
        FAIL("the time-stamp counter goes at %f GHz, after %f GHz", found, *rate);
    *time = new_time, *counter = new_counter, *rate = *rate ? *rate : found;
}

void sleep_work(int unused)
{
    (void)unused;
    uint64_t rate_time = now(CLOCK_MONOTONIC), rate_counter = __builtin_ia32_rdtsc();
    double rate = 0;
    int64_t apart = now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC), raw = now(CLOCK_BOOTTIME) - now(CLOCK_MONOTONIC);
    for (;;) {
        uint64_t before = now(CLOCK_MONOTONIC);
        struct timespec length = {.tv_nsec = 10000000};
        nanosleep(&length, NULL);
        uint64_t time = now(CLOCK_MONOTONIC), took = time - before;
        if (took < 10000000)
            FAIL("a sleep of 10 ms took %lu ns", took);
        if (took > shared->longest_sleep)
            shared->longest_sleep = took;
        // The two readings of a pair may be some while apart, the less the fewer interrupts come between.
        int64_t least = INT64_MAX, least_raw = INT64_MAX;
        for (int i = 0; i < 5; i++) {
            uint64_t first = now(CLOCK_MONOTONIC);
            int64_t wall = now(CLOCK_REALTIME) - first - apart;
            int64_t boot = now(CLOCK_BOOTTIME) - first - raw;
            least = wall < least ? wall : least;
            least_raw = boot < least_raw ? boot : least_raw;
        }
        if (least > 5000000 || least < -5000000 || least_raw > 5000000 || least_raw < -5000000)
            FAIL("the clocks are %ld and %ld ns apart", least, least_raw);
        check_rate(&rate_time, &rate_counter, &rate);
        add(&shared->sleeps);
    }
}

// Signals: a periodic timer, of which no expiry is lost, and numbers sent to a process and back.

void alarm_work(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec period = {.it_value.tv_nsec = 20000000, .it_interval.tv_nsec = 20000000};
    uint64_t begun = now(CLOCK_MONOTONIC), expiries = 0;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &period, NULL))
        FAIL("timer: %s", strerror(errno));
    uint64_t started = now(CLOCK_MONOTONIC);
    for (;;) {
        siginfo_t info;
        struct timespec patience = {.tv_sec = 30};
        // What was due before the wait is counted behind it, however long the guest stands still at any place.
        uint64_t least = (now(CLOCK_MONOTONIC) - started) / 20000000;
        if (sigtimedwait(&set, &info, &patience) < 0)
            FAIL("no signal of the timer in 30 s");
        expiries += 1 + info.si_overrun;
        uint64_t due = (now(CLOCK_MONOTONIC) - begun) / 20000000;
        if (expiries > due || expiries < least)
            FAIL("the timer has expired %lu times, not %lu to %lu", expiries, least, due);
        __atomic_store_n(&shared->alarms, expiries, __ATOMIC_RELAXED);
    }
}

static void answer_signals(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(&set, &info) > 0)
            sigqueue(info.si_pid, SIGRTMIN + 2, info.si_value);
    }
}

void signal_work(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t other = fork();
    if (other == 0)
        answer_signals(0);
    for (int number = 0;; number++) {
        siginfo_t info;
        struct timespec patience = {.tv_sec = 30};
        if (sigqueue(other, SIGRTMIN + 1, (union sigval){.sival_int = number}))
            FAIL("sigqueue: %s", strerror(errno));
        if (sigtimedwait(&set, &info, &patience) != SIGRTMIN + 2 || info.si_value.sival_int != number)
            FAIL("signal %d was not answered", number);
        add(&shared->signals);
        usleep(1000);
    }
}
