// The guest's work with memory.

#define _GNU_SOURCE
#include <sys/mman.h>
#include "lab.h"

// Memory: each word says which round wrote it, and where. A round looks at all that the one before wrote.

enum { page_words = 512, pages_at_once = 16 };

void memory_work(int mebibytes)
{
    size_t pages = (size_t)mebibytes << 8;
    uint64_t *memory = mmap(NULL, pages * page_words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        FAIL("%d MiB of memory: %s", mebibytes, strerror(errno));
    for (uint64_t round = 0;; round++)
        for (size_t page = 0; page < pages; page++) {
            for (size_t word = page * page_words; word < (page + 1) * page_words; word++) {
                uint64_t expected = round ? mix(round - 1, word) : 0;
                if (memory[word] != expected)
                    FAIL("word %zu of memory is %lx, not %lx of round %lu", word, memory[word], expected, round);
                memory[word] = mix(round, word);
            }
            add(&shared->pages);
            if (page % pages_at_once == pages_at_once - 1)
                usleep(1000);
        }
}
