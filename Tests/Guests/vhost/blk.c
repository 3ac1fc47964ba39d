// A bare-metal guest that writes blocks to a virtio disk, reads each back and
// compares it, for ever, with several requests in hand on each of QUEUES queues.
// Prints
//   blk: REQUESTS
// every 256 requests or so, of which each queue has done its share, and FAIL
// when a request is lost, done twice or wrong.
#include "virtio.h"

#ifndef QUEUES
#define QUEUES 1
#endif

enum { IN_HAND = 16, SLOTS = IN_HAND * QUEUES, BLOCK_WORDS = 512, BLOCKS = 1024, LINE = 256 };
enum { MULTI_QUEUE = 1 << 12 };  // VIRTIO_BLK_F_MQ

struct request {
    struct { u32 type, reserved; u64 sector; } head;
    u64 data[BLOCK_WORDS] __attribute__((aligned(4096)));
    u8 status;
    u8 pending;
    u64 step;  // of this slot: even ones write, odd ones read that back
};

static struct queue queues[QUEUES];
static struct request requests[SLOTS];
static u64 done[QUEUES];

static u64 mix(u64 a, u64 b) {
    u64 x = a * 0x9e3779b97f4a7c15UL ^ b * 0xd1b54a32d192ed03UL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9UL;
    return x ^ x >> 32;
}

static void submit(u16 slot) {
    struct request *r = &requests[slot];
    u64 round = r->step / 2;
    u64 block = slot + SLOTS * (round % (BLOCKS / SLOTS));
    int writes = !(r->step & 1);
    for (u64 word = 0; word < BLOCK_WORDS; word++)
        r->data[word] = writes ? mix(round * SLOTS + slot, word) : ~0UL;
    r->head.type = writes ? 1 : 0;
    r->head.sector = block * 8;
    r->status = 0xff;
    r->pending = 1;
    struct queue *q = &queues[slot / IN_HAND];
    u16 first = (u16)(slot % IN_HAND * 3);
    struct descriptor *d = &q->table[first];
    d[0] = (struct descriptor){(u64)&r->head, 16, NEXT, (u16)(first + 1)};
    d[1] = (struct descriptor){(u64)r->data, sizeof r->data, (u16)(NEXT | (writes ? 0 : WRITE)), (u16)(first + 2)};
    d[2] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
    make_available(q, first);
}

// What the slowest queue has done, for all of them.
static u64 progress(void) {
    return least(done, QUEUES) * QUEUES;
}

_Noreturn void run(void) {
    u64 printed = 0;
    u32 next = 0;
    start_device(2, MULTI_QUEUE);
    u32 offered = QUEUES > 1 ? *(volatile u16 *)((u64)DEVICE + 0x100 + 34) : 1;
    if (offered != QUEUES) fail("number of queues", offered, QUEUES);
    for (u32 index = 0; index < QUEUES; index++) {
        start_queue(&queues[index], index);
        done[index] = 0;
    }
    driver_ok();
    for (u16 slot = 0; slot < SLOTS; slot++) {
        requests[slot].step = 0;
        submit(slot);
    }
    for (u32 index = 0; index < QUEUES; index++) notify(&queues[index]);
    for (;;) {
        struct queue *q = wait_any(queues, QUEUES, next);
        next = q->number + 1;
        u16 id = take_used(q);
        u16 slot = (u16)(id / 3 + q->number * IN_HAND);
        if (id % 3 || id / 3 >= IN_HAND) fail("unknown descriptor", id, done[q->number]);
        struct request *r = &requests[slot];
        if (!r->pending) fail("request done twice", slot, r->step);
        r->pending = 0;
        if (*(volatile u8 *)&r->status) fail("status", r->status, r->step);
        if (r->step & 1) {
            u64 seed = r->step / 2 * SLOTS + slot;
            for (u64 word = 0; word < BLOCK_WORDS; word++)
                if (r->data[word] != mix(seed, word)) fail("content", slot, r->step);
        }
        r->step++;
        submit(slot);
        notify(q);
        done[q->number]++;
        if (progress() - printed >= LINE) {
            printed = progress();
            text("blk: ");
            number(printed);
            text("\n");
        }
    }
}
