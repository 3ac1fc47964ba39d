// A bare-metal guest that queues requests to a virtio disk and waits for their interrupts, and does nothing else: so that
// what is measured is the disk, and not the hart. For each kind of work it prints
//   baton-blockload: OPERATION BYTES DEPTH requests=COUNT ticks=TICKS
// where a tick is one of the time counter (100 ns), and powers the machine off.
#define QUEUE_LENGTH 256
#include "virtio.h"

enum { LARGEST = 128 << 10, DEEPEST = 32, DISK_BYTES = 64 << 20, SECTOR = 512 };
#define SECONDS 1
#define TICKS_PER_SECOND 10000000UL
#define FINISHER ((volatile u32 *)0x100000UL)

struct request {
    struct { u32 type, reserved; u64 sector; } head;
    u8 status;
    u8 data[LARGEST] __attribute__((aligned(4096)));
};

static struct queue queue;
static struct request requests[DEEPEST];
static u64 seed;

static u64 now(void) {
    u64 ticks;
    __asm__ volatile("rdtime %0" : "=r"(ticks));
    return ticks;
}

static void submit(u16 slot, u32 type, u32 bytes) {
    struct request *r = &requests[slot];
    seed = seed * 6364136223846793005UL + 1442695040888963407UL;
    r->head.type = type;
    r->head.sector = (seed >> 33) % (DISK_BYTES / bytes) * (bytes / SECTOR);
    r->status = 0xff;
    u16 first = (u16)(slot * 3);
    struct descriptor *d = &queue.table[first];
    d[0] = (struct descriptor){(u64)&r->head, 16, NEXT, (u16)(first + 1)};
    d[1] = (struct descriptor){(u64)r->data, bytes, (u16)(NEXT | (type ? 0 : WRITE)), (u16)(first + 2)};
    d[2] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
    make_available(&queue, first);
}

static void work(const char *operation, u32 type, u32 bytes, u16 depth) {
    for (u16 slot = 0; slot < depth; slot++) submit(slot, type, bytes);
    u64 begin = now(), done = 0, end;
    notify(&queue);
    do {
        wait_any(&queue, 1, 0);
        u16 again = 0;
        while (has_used(&queue)) {
            fence();
            u16 slot = take_used(&queue) / 3;
            if (slot >= depth || *(volatile u8 *)&requests[slot].status) fail("status", slot, requests[slot].status);
            submit(slot, type, bytes);
            done++;
            again++;
        }
        if (again) notify(&queue);
        end = now();
    } while (end - begin < SECONDS * TICKS_PER_SECOND);
    text("baton-blockload: ");
    text(operation);
    text(" ");
    number(bytes);
    text(" ");
    number(depth);
    text(" requests=");
    number(done);
    text(" ticks=");
    number(end - begin);
    text("\n");
    for (u16 left = depth; left; left--) wait_used(&queue);
}

_Noreturn void run(void) {
    seed = 1;
    start_device(2, 0);
    start_queue(&queue, 0);
    driver_ok();
    work("read", 0, 4096, 1);
    work("write", 1, 4096, 1);
    work("read", 0, 4096, DEEPEST);
    work("write", 1, 4096, DEEPEST);
    work("read", 0, LARGEST, DEEPEST / 4);
    work("write", 1, LARGEST, DEEPEST / 4);
    text("baton-blockload: end\n");
    *FINISHER = 0x5555;
    for (;;) __asm__ volatile("wfi");
}
