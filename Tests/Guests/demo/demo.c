// A static Linux program without a C library: works on memory and on a disk
// for ever, verifying both, and says on the console how far it is.
//
// Usage: demo DISK. While /run/baton-demo.quiet exists nothing is printed.
// /run/baton-demo.status always has the latest line.
#include "linux.h"
#include "work.h"

enum { AT_FDCWD = -100, O_RDWR = 2, O_CREAT = 0100, O_DIRECT = 040000, CLOCK_MONOTONIC = 1 };

#define PRINT_INTERVAL 200000000L  // ns

static u64 buffer[PAGES * PAGE_WORDS] __attribute__((aligned(4096)));
static u64 record[RECORD_WORDS] __attribute__((aligned(4096)));
static u64 sums[RECORDS];  // the checksum in each record on the disk
static char line[256];
static unsigned long length;

static void text(const char *s) {
    while (*s && length < sizeof line) line[length++] = *s++;
}

static void number(u64 value, unsigned base) {
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count && length < sizeof line) line[length++] = digits[--count];
}

static void print(void) {
    const char *from = line;
    while (length) {
        long written = call(SYS_write, 1, (long)from, (long)length, 0);
        if (written <= 0) break;
        from += written;
        length -= (unsigned long)written;
    }
    length = 0;
}

static void field(const char *name, u64 value, unsigned base) {
    text(name);
    number(value, base);
}

_Noreturn static void fail(const char *what, u64 step, u64 where, u64 found, u64 expected) {
    length = 0;
    text("\nbaton-demo: FAIL ");
    text(what);
    field(" step=", step, 10);
    field(" at=", where, 10);
    field(" found=", found, 16);
    field(" expected=", expected, 16);
    text("\n");
    print();
    call(SYS_exit, 1, 0, 0, 0);
    __builtin_unreachable();
}

static long now(void) {
    long time[2] = {0, 0};
    call(SYS_clock_gettime, CLOCK_MONOTONIC, (long)time, 0, 0);
    return time[0] * 1000000000L + time[1];
}

static u64 work(u64 step, u64 sum) {
    u64 page = step % PAGES, round = step / PAGES;
    // The first round starts at step 1: page 0 is first due in round 1, from the initial contents of round 0.
    u64 previous = round ? round - 1 : ~0UL;
    u64 *words = buffer + page * PAGE_WORDS;
    for (u64 index = 0; index < PAGE_WORDS; index++) {
        u64 place = page * PAGE_WORDS + index;
        u64 expected = mix(place, previous);
        if (words[index] != expected) fail("memory", step, place, words[index], expected);
        u64 fresh = mix(place, round);
        words[index] = fresh;
        sum = fold(sum, fresh);
    }
    return sum;
}

static void write_record(int disk, u64 index, u64 step, u64 sum) {
    u64 slot = index % RECORDS;
    record[0] = RECORD_MAGIC;
    record[1] = index;
    record[2] = step;
    record[3] = sum;
    for (u64 word = 4; word < RECORD_WORDS; word++) record[word] = mix(index, word);
    long done = call(SYS_pwrite64, disk, (long)record, sizeof record, (long)(slot * sizeof record));
    if (done != sizeof record) fail("disk write", step, slot, (u64)done, sizeof record);
    sums[slot] = sum;
}

static void read_record(int disk, u64 index, u64 step) {
    u64 slot = index % RECORDS;
    long done = call(SYS_pread64, disk, (long)record, sizeof record, (long)(slot * sizeof record));
    if (done != sizeof record) fail("disk read", step, slot, (u64)done, sizeof record);
    u64 head[4] = {RECORD_MAGIC, index, index * STEPS_PER_RECORD, sums[slot]};
    for (u64 word = 0; word < RECORD_WORDS; word++) {
        u64 expected = word < 4 ? head[word] : mix(index, word);
        if (record[word] != expected) fail("disk content", step, slot * RECORD_WORDS + word, record[word], expected);
    }
}

static void publish(int status, u64 step, u64 sum, u64 *lines) {
    int quiet = call(SYS_faccessat, AT_FDCWD, (long)"/run/baton-demo.quiet", 0, 0) == 0;
    field("baton-demo: count=", step, 10);
    field(" sum=", sum, 16);
    text(" disk=ok mem=ok");
    field(" line=", *lines, 10);
    text("\n");
    if (status >= 0) call(SYS_pwrite64, status, (long)line, (long)length, 0);
    if (quiet) {
        length = 0;
        return;
    }
    *lines += 1;
    print();
}

_Noreturn void start(long *stack) {
    if (stack[0] < 2) fail("usage: demo DISK", 0, 0, 0, 0);
    int disk = (int)call(SYS_openat, AT_FDCWD, stack[2], O_RDWR | O_DIRECT, 0);
    if (disk < 0) fail("cannot open the disk", 0, 0, (u64)-disk, 0);
    int status = (int)call(SYS_openat, AT_FDCWD, (long)"/run/baton-demo.status", O_RDWR | O_CREAT, 0644);

    for (u64 place = 0; place < PAGES * PAGE_WORDS; place++) buffer[place] = mix(place, place < PAGE_WORDS ? 0 : ~0UL);

    u64 step = 0, sum = 0, lines = 1;
    long clock = now(), printed = 0;
    for (;;) {
        step += 1;
        sum = work(step, sum);
        if (step % STEPS_PER_RECORD) continue;
        u64 index = step / STEPS_PER_RECORD;
        write_record(disk, index, step, sum);
        // Any of the records that are still on the disk.
        u64 oldest = index > RECORDS ? index - RECORDS + 1 : 1;
        read_record(disk, oldest + mix(index, 1) % (index - oldest + 1), step);

        long time = now();
        if (time < clock) fail("clock went backwards", step, 0, (u64)time, (u64)clock);
        clock = time;
        if (time - printed >= PRINT_INTERVAL) {
            publish(status, step, sum, &lines);
            printed = time;
        }
    }
}
