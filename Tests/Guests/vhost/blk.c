// A bare-metal guest that writes blocks to a virtio disk, reads each back and
// compares it, for ever, with several requests in hand. Prints
//   blk: REQUESTS
// every 256 requests, and FAIL when a request is lost, done twice or wrong.
#include "virtio.h"

enum { IN_HAND = 16, BLOCK_WORDS = 512, BLOCKS = 1024, LINE = 256 };

struct request {
    struct { u32 type, reserved; u64 sector; } head;
    u64 data[BLOCK_WORDS] __attribute__((aligned(4096)));
    u8 status;
    u8 pending;
    u64 step;  // of this slot: even ones write, odd ones read that back
};

static struct queue queue;
static struct request requests[IN_HAND];

static u64 mix(u64 a, u64 b) {
    u64 x = a * 0x9e3779b97f4a7c15UL ^ b * 0xd1b54a32d192ed03UL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9UL;
    return x ^ x >> 32;
}

static void submit(u16 slot) {
    struct request *r = &requests[slot];
    u64 round = r->step / 2;
    u64 block = slot + IN_HAND * (round % (BLOCKS / IN_HAND));
    int writes = !(r->step & 1);
    for (u64 word = 0; word < BLOCK_WORDS; word++)
        r->data[word] = writes ? mix(round * IN_HAND + slot, word) : ~0UL;
    r->head.type = writes ? 1 : 0;
    r->head.sector = block * 8;
    r->status = 0xff;
    r->pending = 1;
    u16 first = (u16)(slot * 3);
    struct descriptor *d = &queue.table[first];
    d[0] = (struct descriptor){(u64)&r->head, 16, NEXT, (u16)(first + 1)};
    d[1] = (struct descriptor){(u64)r->data, sizeof r->data, (u16)(NEXT | (writes ? 0 : WRITE)), (u16)(first + 2)};
    d[2] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
    make_available(&queue, first);
}

_Noreturn void run(void) {
    u64 done = 0;
    start_device(2, 0);
    start_queue(&queue, 0);
    driver_ok();
    for (u16 slot = 0; slot < IN_HAND; slot++) {
        requests[slot].step = 0;
        submit(slot);
    }
    notify(&queue);
    for (;;) {
        u16 id = wait_used(&queue);
        u16 slot = id / 3;
        if (id % 3 || slot >= IN_HAND) fail("unknown descriptor", id, done);
        struct request *r = &requests[slot];
        if (!r->pending) fail("request done twice", slot, r->step);
        r->pending = 0;
        if (*(volatile u8 *)&r->status) fail("status", r->status, r->step);
        if (r->step & 1) {
            u64 seed = r->step / 2 * IN_HAND + slot;
            for (u64 word = 0; word < BLOCK_WORDS; word++)
                if (r->data[word] != mix(seed, word)) fail("content", slot, r->step);
        }
        r->step++;
        submit(slot);
        notify(&queue);
        if (++done % LINE == 0) {
            text("blk: ");
            number(done);
            text("\n");
        }
    }
}
