// A bare-metal guest that asks its virtio disk for as much as its queue can
// hold at once: every chain is an indirect one that reads 2000 MiB. Prints
//   flood: asked
// when the notification has returned, so that the guest has a turn again,
//   flood: N
// for each request that is done, and FAIL when one is wrong.
#include "virtio.h"

enum { CHAINS = 64, SEGMENTS = 500, SEGMENT = 4 << 20 };
enum { INDIRECT = 4, RING_INDIRECT = 1 << 28 };

static struct queue queue;
static struct { u32 type, reserved; u64 sector; } head;
static struct descriptor table[SEGMENTS + 2] __attribute__((aligned(16)));
static u8 data[SEGMENT] __attribute__((aligned(4096)));
static u8 status;

_Noreturn void run(void) {
    start_device(2, RING_INDIRECT);
    start_queue(&queue, 0);
    driver_ok();
    table[0] = (struct descriptor){(u64)&head, sizeof head, NEXT, 1};
    for (u16 place = 1; place <= SEGMENTS; place++)
        table[place] = (struct descriptor){(u64)data, SEGMENT, NEXT | WRITE, (u16)(place + 1)};
    table[SEGMENTS + 1] = (struct descriptor){(u64)&status, 1, WRITE, 0};
    status = 0xff;
    for (u16 chain = 0; chain < CHAINS; chain++) {
        queue.table[chain] = (struct descriptor){(u64)table, sizeof table, INDIRECT, 0};
        make_available(&queue, chain);
    }
    notify(&queue);
    text("flood: asked\n");
    for (u64 done = 1;; done++) {
        wait_any(&queue, 1, 0);
        queue.seen++;
        if (*(volatile u8 *)&status) fail("status", status, done);
        text("flood: ");
        number(done);
        text("\n");
        if (done == CHAINS) break;
    }
    for (;;) wait_interrupt();
}
