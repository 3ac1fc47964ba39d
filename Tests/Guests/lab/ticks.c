// Prints the rate of this machine's time-stamp counter in kHz: that of the lab's too, whose Linux cannot measure it by
// an emulated timer while this machine is busy.

#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

// The counter and the clock (ns) at one moment, as near as they could be read in some attempts.
static void read_both(unsigned long long *ticks, long long *nanoseconds)
{
    unsigned long long least = ~0ull;
    for (int attempt = 0; attempt < 1000; attempt++) {
        struct timespec time;
        unsigned long long before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC, &time);
        unsigned long long after = __rdtsc();
        if (after - before >= least)
            continue;
        least = after - before;
        *ticks = before + least / 2;
        *nanoseconds = time.tv_sec * 1000000000LL + time.tv_nsec;
    }
}

int main(void)
{
    unsigned long long ticks[2];
    long long nanoseconds[2];
    read_both(&ticks[0], &nanoseconds[0]);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    read_both(&ticks[1], &nanoseconds[1]);
    printf("%lld\n", (long long)((double)(ticks[1] - ticks[0]) * 1e6 / (double)(nanoseconds[1] - nanoseconds[0])));
    return 0;
}
