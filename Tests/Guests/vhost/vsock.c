// A bare-metal guest with a virtio-vsock device that sends numbered packets for
// ever, several at a time, and expects each back, once and in order. Prints
//   cid: ADDRESS
//   vsock: PACKETS
// the latter every 256 packets, "vsock reset" when it is told that its connections
// are no more, after which it begins anew, and FAIL.
#include "virtio.h"

enum { IN_HAND = 8, BUFFERS = 16, EVENTS = 4, LINE = 256 };

struct packet { u64 epoch, number; u8 body[512]; } __attribute__((aligned(16)));

static struct queue receive, transmit, events;
static struct packet in[BUFFERS], out[IN_HAND];
static u32 event[EVENTS];
static u64 sent, received, epoch;

static u8 content(u64 number, u32 place) { return (u8)(number * 7 + place + epoch); }

static void offer(u16 slot) {
    receive.table[slot] = (struct descriptor){(u64)&in[slot], sizeof(struct packet), WRITE, 0};
    make_available(&receive, slot);
}

static void offer_event(u16 slot) {
    event[slot] = ~0u;
    events.table[slot] = (struct descriptor){(u64)&event[slot], sizeof event[slot], WRITE, 0};
    make_available(&events, slot);
}

static void send(void) {
    u16 slot = (u16)(sent % IN_HAND);
    struct packet *p = &out[slot];
    p->epoch = epoch;
    p->number = sent;
    for (u32 place = 0; place < sizeof p->body; place++) p->body[place] = content(sent, place);
    transmit.table[slot] = (struct descriptor){(u64)p, sizeof *p, 0, 0};
    make_available(&transmit, slot);
    sent++;
    notify(&transmit);
}

// Whether there is room for a packet: what was sent before has been taken, in this order.
static int has_place(void) {
    return (u16)(transmit.available.index - *(volatile u16 *)&transmit.used.index) < IN_HAND;
}

static void take_events(void) {
    while (has_used(&events)) {
        fence();
        u32 length = events.used.ring[events.seen % QUEUE_SIZE].length;
        u16 slot = take_used(&events);
        if (slot >= EVENTS || length != sizeof event[0] || event[slot]) fail("event", slot, length);
        text("vsock reset\n");
        epoch++;
        // What comes back of the packets of before is no more of interest.
        received = sent;
        offer_event(slot);
        notify(&events);
    }
}

_Noreturn void run(void) {
    u64 done = 0;
    start_device(19, 2);
    start_queue(&receive, 0);
    start_queue(&transmit, 1);
    start_queue(&events, 2);
    driver_ok();
    sent = received = 0;
    text("cid: ");
    number(reg(0x100) | (u64)reg(0x104) << 32);
    text("\n");
    for (u16 slot = 0; slot < EVENTS; slot++) offer_event(slot);
    for (u16 slot = 0; slot < BUFFERS; slot++) offer(slot);
    notify(&events);
    notify(&receive);
    for (;;) {
        take_events();
        while (sent - received < IN_HAND && has_place()) send();
        if (!has_used(&receive)) {
            wait_interrupt();
            continue;
        }
        fence();
        u32 length = receive.used.ring[receive.seen % QUEUE_SIZE].length;
        u16 slot = take_used(&receive);
        if (slot >= BUFFERS || length != sizeof(struct packet)) fail("buffer", slot, length);
        struct packet *p = &in[slot];
        if (p->epoch == epoch) {
            if (p->number != received) fail("packet", p->number, received);
            for (u32 place = 0; place < sizeof p->body; place++)
                if (p->body[place] != content(received, place)) fail("content", received, place);
            received++;
            if (++done % LINE == 0) {
                text("vsock: ");
                number(done);
                text("\n");
            }
        }
        offer(slot);
        notify(&receive);
    }
}
