#include "mapping_guard.h"

#include <linux/magic.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define RANGES 256

static struct range { uintptr_t start, end; } ranges[RANGES];
static struct sigaction previous;
static int installed;

int mapping_guard_accepts(int fd, uint64_t offset, uint64_t size)
{
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || fstatfs(fd, &system) != 0)
        return 0;
    uint64_t length = (uint64_t)status.st_size;
    return system.f_type != FUSE_SUPER_MAGIC && offset <= length && size <= length - offset;
}

/* Puts memory of our own at [START, START + LENGTH). */
static int replace(uintptr_t start, size_t length)
{
    int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return mmap((void *)start, length, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < RANGES; i++) {
        if (at < ranges[i].start || at >= ranges[i].end)
            continue;
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        uintptr_t start = at & ~(uintptr_t)(page - 1);
        /* Of huge pages only the whole can be replaced. */
        if (replace(start, page) == 0 || replace(ranges[i].start, ranges[i].end - ranges[i].start) == 0) {
            memset((void *)start, 0xff, page);
            return;
        }
    }
    /* Not ours: what was there before gets it, when the access is repeated. */
    sigaction(number, &previous, NULL);
    installed = 0;
}

int mapping_guard_add(void *start, size_t length)
{
    if (!installed) {
        struct sigaction action = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO };
        sigemptyset(&action.sa_mask);
        if (sigaction(SIGBUS, &action, &previous) != 0)
            return -1;
        installed = 1;
    }
    for (int i = 0; i < RANGES; i++) {
        if (ranges[i].end != 0)
            continue;
        ranges[i].start = (uintptr_t)start;
        ranges[i].end = (uintptr_t)start + length;
        return 0;
    }
    return -1;
}

void mapping_guard_remove(void *start)
{
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].start == (uintptr_t)start)
            ranges[i] = (struct range){ 0, 0 };
}
