// What the parts of the lab's guest program have in common.

#pragma once
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// What the processes have done, in memory of all of them.
struct shared {
    uint64_t blocks, frames, returned, sleeps, alarms, signals, rounds, readings, passed_blocks, passed_frames, transfers,
        pages, plugged, unplugged, plugged_blocks;
    // The latest time that any CPU has read, in ns.
    uint64_t latest;
    // The longest that a sleep of 10 ms, or a frame's way back, took, in ns.
    uint64_t longest_sleep, longest_frame, longest_passed_frame;
    // Numbers that came back by sockets; connections that ended, by kind; those that the server had, and has no more.
    uint64_t vsock_echoes, vsock_busy_ends, vsock_idle_ends, vsock_accepted, vsock_served;
};
extern struct shared *shared;

// Writes a line to the console.
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

// Says what is wrong, and does no more.
#define FAIL(format, ...) \
    do { \
        say("lab: FAIL " format, ##__VA_ARGS__); \
        pause(); \
        _exit(1); \
    } while (0)

static inline uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static inline void add(uint64_t *counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

// The contents of something, by its number and the place in it.
static inline uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15ull + b;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 32;
}

// The first line of a file, empty if it cannot be read.
void read_line(const char *path, char *line, int size);

// Whether there is a PCI device of this id, as in "0x11e8", and where: `address`, of address_size bytes, may be NULL.
enum { address_size = 32 };
int find_device(const char *device, char *address);

// Works on a disk until it fails.
// Returns the error.
int work_while_there(int disk, uint64_t *counter);

// Kinds of work, each of which never ends. The argument is a descriptor, a CPU, or nothing.
void disk_work(int disk);
void passed_disk_work(int disk);
void plugged_work(int unused);
int open_virtio_card(int number);
void send_frames(int card);
void return_frames(int card);
// With a card that was passed through, which is joined with itself outside.
int find_passed_card(void);
void passed_card_work(int card);
void clock_work(int cpu);
void sleep_work(int unused);
void alarm_work(int unused);
void signal_work(int unused);
void register_work(int which);
void memory_work(int mebibytes);
void edu_work(int unused);
