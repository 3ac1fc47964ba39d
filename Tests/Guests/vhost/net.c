// A bare-metal guest that sends numbered frames on each of QUEUES pairs of a
// virtio network card, for ever, several at a time, and expects each back on the
// same pair, once and in order. Prints
//   net: FRAMES
// every 256 frames or so, of which each pair has had its share, and FAIL.
#include "virtio.h"

#ifndef QUEUES
#define QUEUES 1
#endif

enum { IN_HAND = 16, BUFFERS = 32, HEADER = 12, ETHERNET = 14, LINE = 256 };
enum { STATUS = 1 << 16, CONTROL_QUEUE = 1 << 17, MULTI_QUEUE = 1 << 22 };

struct frame {
    u8 header[HEADER], ethernet[ETHERNET];
    u8 body[1400];
} __attribute__((aligned(16)));

static struct queue receive[QUEUES], transmit[QUEUES], control;
static struct frame in[QUEUES][BUFFERS], out[QUEUES][IN_HAND];
static u64 sent[QUEUES], received[QUEUES];
static struct { u8 kind, command; u16 pairs; } request;
static u8 reply;

static u8 content(u64 pair, u64 number, u32 place) { return (u8)((pair + 1) * 31 + number * 7 + place); }

static void offer(u32 pair, u16 slot) {
    receive[pair].table[slot] = (struct descriptor){(u64)&in[pair][slot], sizeof(struct frame), WRITE, 0};
    make_available(&receive[pair], slot);
}

static void send(u32 pair) {
    u16 slot = (u16)(sent[pair] % IN_HAND);
    struct frame *f = &out[pair][slot];
    for (u32 place = 0; place < HEADER; place++) f->header[place] = 0;
    for (u32 place = 0; place < ETHERNET; place++) f->ethernet[place] = 2;
    for (u32 place = 0; place < sizeof f->body; place++) f->body[place] = content(pair, sent[pair], place);
    transmit[pair].table[slot] = (struct descriptor){(u64)f, sizeof *f, 0, 0};
    make_available(&transmit[pair], slot);
    sent[pair]++;
    notify(&transmit[pair]);
}

static void use_pairs(u16 pairs) {
    request.kind = 4;
    request.command = 0;
    request.pairs = pairs;
    reply = 0xff;
    control.table[0] = (struct descriptor){(u64)&request, 4, NEXT, 1};
    control.table[1] = (struct descriptor){(u64)&reply, 1, WRITE, 0};
    make_available(&control, 0);
    notify(&control);
    wait_used(&control);
    if (*(volatile u8 *)&reply) fail("control request", pairs, reply);
}

// What the slowest pair has had, for all of them.
static u64 progress(void) {
    return least(received, QUEUES) * QUEUES;
}

_Noreturn void run(void) {
    u64 printed = 0;
    u32 next = 0;
    start_device(1, STATUS | (QUEUES > 1 ? CONTROL_QUEUE | MULTI_QUEUE : 0));
    for (u32 pair = 0; pair < QUEUES; pair++) {
        start_queue(&receive[pair], 2 * pair);
        start_queue(&transmit[pair], 2 * pair + 1);
        sent[pair] = received[pair] = 0;
    }
    if (QUEUES > 1) start_queue(&control, 2 * QUEUES);
    driver_ok();
    for (u32 pair = 0; pair < QUEUES; pair++) {
        for (u16 slot = 0; slot < BUFFERS; slot++) offer(pair, slot);
        notify(&receive[pair]);
    }
    if (QUEUES > 1) use_pairs(QUEUES);
    for (u32 pair = 0; pair < QUEUES; pair++)
        for (u16 slot = 0; slot < IN_HAND; slot++) send(pair);
    for (;;) {
        struct queue *q = wait_any(receive, QUEUES, next);
        u32 pair = (u32)(q - receive);
        next = pair + 1;
        u32 length = q->used.ring[q->seen % QUEUE_SIZE].length;
        u16 slot = take_used(q);
        if (slot >= BUFFERS || length != sizeof(struct frame)) fail("buffer", slot, length);
        struct frame *f = &in[pair][slot];
        for (u32 place = 0; place < sizeof f->body; place++)
            if (f->body[place] != content(pair, received[pair], place)) fail("frame", pair, received[pair]);
        received[pair]++;
        offer(pair, slot);
        notify(q);
        send(pair);
        if (progress() - printed >= LINE) {
            printed = progress();
            text("net: ");
            number(printed);
            text("\n");
        }
    }
}
