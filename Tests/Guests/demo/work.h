// The work that the demo guest does, and that the driver (DemoModel.swift)
// repeats to tell whether a single step was lost, doubled or wrong. Both files
// must agree.
//
// Step n (from 1) verifies page n % PAGES of the buffer, which step n - PAGES
// filled, fills it for this round and folds what it wrote into the checksum.
#ifndef BATON_DEMO_WORK_H
#define BATON_DEMO_WORK_H

typedef unsigned long u64;

#define PAGES 1024
#define PAGE_WORDS 512

// One disk record each STEPS_PER_RECORD steps, in a ring of RECORDS records of RECORD_WORDS words:
// magic, index, step, checksum, then a pattern.
#define STEPS_PER_RECORD 64
#define RECORDS 2048
#define RECORD_WORDS 512
#define RECORD_MAGIC 0x434552434e544142UL  // "BATNCREC" in memory

static inline u64 mix(u64 a, u64 b) {
    u64 x = a * 0x9e3779b97f4a7c15UL ^ b * 0xd1b54a32d192ed03UL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9UL;
    return x ^ x >> 32;
}

static inline u64 fold(u64 sum, u64 x) {
    return (sum << 7 | sum >> 57) ^ x;
}

#endif
