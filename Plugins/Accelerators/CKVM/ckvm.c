#define _GNU_SOURCE
#include "ckvm.h"

#include <cpuid.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

int ckvm_ioctl(int fd, unsigned long request, void *argument) {
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

int ckvm_ioctl_value(int fd, unsigned long request, unsigned long value) {
    int result = ioctl(fd, request, value);
    return result < 0 ? -errno : result;
}

int ckvm_run(int fd) {
    int result = ioctl(fd, KVM_RUN, 0);
    return result < 0 ? -errno : result;
}

int ckvm_open(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

void ckvm_close(int fd) { close(fd); }

struct kvm_run *ckvm_map_run(int vcpu, size_t size) {
    void *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    return run == MAP_FAILED ? NULL : run;
}

void ckvm_unmap_run(struct kvm_run *run, size_t size) { munmap(run, size); }

struct ckvm_cpuid_result ckvm_cpuid(uint32_t leaf, uint32_t subleaf) {
    struct ckvm_cpuid_result result = {0};
    __cpuid_count(leaf, subleaf, result.eax, result.ebx, result.ecx, result.edx);
    return result;
}

uint64_t ckvm_rdtsc(void) { return __rdtsc(); }

int64_t ckvm_raw_time(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC_RAW, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int ckvm_read_text(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    ssize_t length = read(fd, text, size - 1);
    int code = length < 0 ? errno : 0;
    text[length < 0 ? 0 : length] = 0;
    close(fd);
    return code;
}

int ckvm_write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return errno;
    int code = write(fd, text, strlen(text)) < 0 ? errno : 0;
    close(fd);
    return code;
}

/* Not a real-time signal: these are queued, and refused when the user has queued too many anywhere (RLIMIT_SIGPENDING). */
int ckvm_kick_signal(void) { return SIGUSR1; }

static void ignore(int signal) { (void)signal; }

int ckvm_prepare_signals(void) {
    struct sigaction action = {.sa_handler = ignore};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, ckvm_kick_signal());
    if (sigaction(ckvm_kick_signal(), &action, NULL) != 0) return errno;
    return pthread_sigmask(SIG_BLOCK, &set, NULL);
}

void ckvm_name_thread(const char *name) { prctl(PR_SET_NAME, name); }

int ckvm_enter_and_leave(int fd, struct kvm_run *run) {
    /* The kernel looks at the signals that are pending only with a mask of KVM_RUN's own. */
    struct {
        struct kvm_signal_mask mask;
        unsigned char signals[8];
    } during = {.mask.len = sizeof during.signals};
    sigset_t kick, old;
    int result;

    sigemptyset(&kick);
    sigaddset(&kick, ckvm_kick_signal());
    pthread_sigmask(SIG_BLOCK, &kick, &old);
    memcpy(during.mask.sigset, &old, sizeof during.signals);
    result = ckvm_ioctl(fd, KVM_SET_SIGNAL_MASK, &during);
    /* Without the signal the guest would run. */
    if (result == 0) result = -pthread_kill(pthread_self(), ckvm_kick_signal());
    if (result == 0) {
        ckvm_set_immediate_exit(run, 0);
        result = ckvm_run(fd);
        ckvm_set_immediate_exit(run, 1);
        ckvm_ioctl(fd, KVM_SET_SIGNAL_MASK, NULL);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return result;
}

int ckvm_start_thread(pthread_t *thread, void *(*body)(void *), void *argument) {
    pthread_attr_t attributes;
    sigset_t mask, old;
    int code = pthread_attr_init(&attributes);
    if (code != 0) return code;
    /* Devices run on it; only what is touched costs memory. */
    pthread_attr_setstacksize(&attributes, 512 * 1024);
    sigfillset(&mask);
    sigdelset(&mask, ckvm_kick_signal());
    pthread_sigmask(SIG_SETMASK, &mask, &old);
    code = pthread_create(thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
    return code;
}

int ckvm_kick(pthread_t thread) { return pthread_kill(thread, ckvm_kick_signal()); }

int ckvm_thread_id(void) { return (int)syscall(SYS_gettid); }

/* struct sched_attr of Linux 3.14, which the C library may not know. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* What sched_attr says in flags is a bit of the policy in older calls, and in ckvm_scheduling. */
enum { RESET_ON_FORK = 1, DEADLINE = 6 };

int ckvm_get_scheduling(int thread, struct ckvm_scheduling *scheduling) {
    memset(scheduling, 0, sizeof *scheduling);
    long length = syscall(SYS_sched_getaffinity, thread, sizeof scheduling->affinity, scheduling->affinity);
    if (length < 0) return errno;
    struct attributes found = {0};
    if (syscall(SYS_sched_getattr, thread, &found, sizeof found, 0) < 0) return errno;
    scheduling->affinity_length = (uint32_t)length;
    scheduling->policy = (int32_t)(found.policy | (found.flags & RESET_ON_FORK ? SCHED_RESET_ON_FORK : 0));
    scheduling->priority = (int32_t)found.priority;
    /* It says nothing of the niceness of what is not scheduled by it, and that may become so again. */
    errno = 0;
    scheduling->nice = getpriority(PRIO_PROCESS, (id_t)thread);
    if (scheduling->nice == -1 && errno != 0) return errno;
    if (found.policy != DEADLINE) return 0;
    scheduling->runtime = found.runtime;
    scheduling->deadline = found.deadline;
    scheduling->period = found.period;
    return 0;
}

int ckvm_is_same_scheduling(const struct ckvm_scheduling *one, const struct ckvm_scheduling *other) {
    return one->policy == other->policy && one->priority == other->priority && one->nice == other->nice &&
        one->runtime == other->runtime && one->deadline == other->deadline && one->period == other->period &&
        one->affinity_length == other->affinity_length &&
        memcmp(one->affinity, other->affinity, one->affinity_length) == 0;
}

int ckvm_set_scheduling(int thread, const struct ckvm_scheduling *scheduling) {
    if (syscall(SYS_sched_setaffinity, thread, scheduling->affinity_length, scheduling->affinity) < 0) return errno;
    struct attributes wanted = {
        .size = sizeof wanted,
        .policy = (uint32_t)(scheduling->policy & ~SCHED_RESET_ON_FORK),
        .flags = scheduling->policy & SCHED_RESET_ON_FORK ? RESET_ON_FORK : 0,
        .nice = scheduling->nice,
        .priority = (uint32_t)scheduling->priority,
        .runtime = scheduling->runtime,
        .deadline = scheduling->deadline,
        .period = scheduling->period,
    };
    if (syscall(SYS_sched_setattr, thread, &wanted, 0) < 0) return errno;
    int current = getpriority(PRIO_PROCESS, (id_t)thread);
    if (current == scheduling->nice) return 0;
    return setpriority(PRIO_PROCESS, (id_t)thread, scheduling->nice) < 0 ? errno : 0;
}
