#define _GNU_SOURCE
#include "cbaton.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define RANGES 1024

/* Read by the handler, in any thread: a range is written from its start on, and
 * counts from when its end is there. */
static struct range {
    uintptr_t start, end;
    uint32_t lost;
    int kind;
} ranges[RANGES];
static struct sigaction previous;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int error, wake = -1;
/* Of all ranges that are guest RAM. */
static uint32_t losses;

static uintptr_t load(const uintptr_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static void store(uintptr_t *word, uintptr_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

int cbaton_guard_accepts(int fd, uint64_t offset, uint64_t size) {
    const long fuse = 0x65735546;
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || fstatfs(fd, &system) != 0) return 0;
    uint64_t length = (uint64_t)status.st_size;
    return system.f_type != fuse && offset <= length && size <= length - offset;
}

/* Puts memory of our own in the place of [START, START + LENGTH). */
static int replace(uintptr_t start, size_t length) {
    int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return mmap((void *)start, length, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

/* Replaces the page at AT. Of huge pages only the whole can be replaced; and a
 * process has a limit of mappings, so that at last it is the whole range. */
static int replace_page(const struct range *range, uintptr_t at, uintptr_t *start, size_t *length) {
    const size_t sizes[] = {(size_t)sysconf(_SC_PAGESIZE), (size_t)2 << 20, (size_t)1 << 30};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        *start = at & ~(uintptr_t)(sizes[i] - 1);
        *length = sizes[i];
        if (*start < range->start || *start + *length > range->end) break;
        if (replace(*start, *length) == 0) return 0;
    }
    *start = range->start;
    *length = range->end - range->start;
    return replace(*start, *length);
}

int cbaton_guard_bus_error(const siginfo_t *info) {
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < RANGES; i++) {
        struct range *range = &ranges[i];
        if (at < load(&range->start) || at >= load(&range->end)) continue;
        uintptr_t start;
        size_t length;
        if (replace_page(range, at, &start, &length) != 0) break;
        if (range->kind == CBATON_GUARD_DEVICE) {
            /* Of a whole large BAR just the part that is asked for now. */
            const size_t page = (size_t)sysconf(_SC_PAGESIZE);
            if (length > (size_t)2 << 20) {
                start = at & ~(uintptr_t)(page - 1);
                length = page;
            }
            memset((void *)start, 0xff, length);
        } else {
            __atomic_fetch_add(&range->lost, 1, __ATOMIC_RELEASE);
            __atomic_fetch_add(&losses, 1, __ATOMIC_RELEASE);
            const uint64_t one = 1;
            if (wake >= 0 && write(wake, &one, sizeof one) < 0) { /* The count is at its limit: it is seen. */
            }
        }
        errno = saved;
        return 1;
    }
    errno = saved;
    return 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    if (cbaton_guard_bus_error(info)) return;
    /* Not ours: whoever was there before gets it, and this handler stays. */
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
    } else {
        /* The end of the process, when the access is repeated. */
        signal(number, SIG_DFL);
    }
}

static void install(void) {
    wake = cbaton_eventfd();
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    if (wake < 0 || sigaction(SIGBUS, &action, &previous) != 0) error = errno;
}

int cbaton_guard_add(void *start, size_t length, int kind) {
    pthread_once(&once, install);
    if (error) {
        errno = error;
        return -1;
    }
    for (int i = 0; i < RANGES; i++) {
        uintptr_t none = 0;
        if (!__atomic_compare_exchange_n(
                &ranges[i].start, &none, (uintptr_t)start, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        ranges[i].kind = kind;
        ranges[i].lost = 0;
        store(&ranges[i].end, (uintptr_t)start + length);
        return 0;
    }
    errno = ENOSPC;
    return -1;
}

static struct range *find(const void *start) {
    for (int i = 0; i < RANGES; i++)
        if (load(&ranges[i].start) == (uintptr_t)start && load(&ranges[i].end) != 0) return &ranges[i];
    return NULL;
}

void cbaton_guard_remove(const void *start) {
    struct range *range = find(start);
    if (!range) return;
    store(&range->end, 0);
    store(&range->start, 0);
}

int cbaton_guard_has_lost(const void *start) {
    if (__atomic_load_n(&losses, __ATOMIC_ACQUIRE) == 0) return 0;
    const struct range *range = find(start);
    return range && __atomic_load_n(&range->lost, __ATOMIC_ACQUIRE) != 0;
}

int cbaton_guard_wake_fd(void) { return wake; }
