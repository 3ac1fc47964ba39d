#define _GNU_SOURCE
#include "cbaton.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As sched_setattr(2) takes it, in its first version: glibc has had it only since 2.41. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* Changes the policy of a thread from OLD to NEW, and nothing else of it. Returns 1, or 0
 * when it was not OLD, or -1. */
static int change(pid_t thread, uint32_t old, uint32_t new_) {
    struct attributes now = {.size = sizeof now};
    if (syscall(SYS_sched_getattr, thread, &now, sizeof now, 0) != 0 || now.policy != old) return 0;
    now.size = sizeof now;
    now.policy = new_;
    return syscall(SYS_sched_setattr, thread, &now, 0) == 0 ? 1 : -1;
}

int cbaton_may_leave_background(void) {
    struct rlimit limit;
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, 0);
    if (errno) return 0;
    /* As the kernel has it: SCHED_IDLE is a nice value of 20, and all that is less is a favour. */
    if (getrlimit(RLIMIT_NICE, &limit) == 0 && (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= (rlim_t)(20 - nice)))
        return 1;
    /* No set of capabilities tells whether CAP_SYS_NICE is one of the whole system's: a favour that is taken does. */
    if (nice == -20 || setpriority(PRIO_PROCESS, 0, nice - 1) != 0) return 0;
    setpriority(PRIO_PROCESS, 0, nice);
    return 1;
}

int64_t cbaton_cpu_time_ns(pid_t process) {
    clockid_t clock;
    struct timespec time;
    if (clock_getcpuclockid(process, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int cbaton_is_in_background(void) { return sched_getscheduler(0) == SCHED_IDLE; }

int cbaton_enter_background(pid_t thread) { return change(thread, SCHED_OTHER, SCHED_IDLE) > 0; }

int cbaton_leave_background(pid_t process) {
    char path[64];
    struct stat status;
    int code = change(process, SCHED_IDLE, SCHED_OTHER) < 0 ? -1 : 0;
    /* Its other threads: a task is a directory, and each directory is a link. */
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    if (stat(path, &status) != 0 || status.st_nlink == 3) return code;
    DIR *directory = opendir(path);
    if (!directory) return code;
    for (struct dirent *entry; (entry = readdir(directory));) {
        pid_t thread = atoi(entry->d_name);
        if (thread > 0 && thread != process) change(thread, SCHED_IDLE, SCHED_OTHER);
    }
    closedir(directory);
    return code;
}
