// What guests of virtio devices share: a driver for split queues of the first
// virtio-mmio device that QEMU's command line order gives (the highest slot).
#ifndef BATON_GUEST_VIRTIO_H
#define BATON_GUEST_VIRTIO_H

#include "bare.h"

#define DEVICE ((volatile u32 *)0x10008000UL)  // virtio-mmio-bus.7
#define DEVICE_IRQ 8

#ifndef QUEUE_LENGTH
#define QUEUE_LENGTH 64
#endif
enum { QUEUE_SIZE = QUEUE_LENGTH };
enum { NEXT = 1, WRITE = 2 };  // descriptor flags

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[QUEUE_SIZE], used_event; };
struct used { u16 flags, index; struct { u32 id, length; } ring[QUEUE_SIZE]; u16 available_event; };

struct queue {
    struct descriptor table[QUEUE_SIZE] __attribute__((aligned(16)));
    struct available available __attribute__((aligned(16)));
    struct used used __attribute__((aligned(16)));
    u32 number;
    u16 seen;  // of the used ring
};

static inline void fence(void) { __asm__ volatile("fence rw, rw" ::: "memory"); }

static u32 reg(unsigned offset) { return DEVICE[offset / 4]; }
static void set(unsigned offset, u32 value) { DEVICE[offset / 4] = value; }

// Resets the device and accepts `features` of what it offers (the low half),
// and VIRTIO_F_VERSION_1.
static void start_device(u32 id, u32 features) {
    if (reg(0) != 0x74726976 || reg(8) != id) fail("no such device", reg(8), id);
    set(0x70, 0);
    while (reg(0x70)) {}
    set(0x70, 1 | 2);
    set(0x14, 0);
    u32 offered = reg(0x10);
    set(0x24, 0);
    set(0x20, offered & features);
    set(0x24, 1);
    set(0x20, 1);
    set(0x70, 1 | 2 | 8);
    if (!(reg(0x70) & 8)) fail("features refused", offered, features);
}

static void start_queue(struct queue *q, u32 index) {
    u8 *bytes = (u8 *)q;
    for (u64 place = 0; place < sizeof *q; place++) bytes[place] = 0;
    q->number = index;
    set(0x30, index);
    if (reg(0x34) < QUEUE_SIZE) fail("queue is too small", reg(0x34), QUEUE_SIZE);
    set(0x38, QUEUE_SIZE);
    u64 addresses[3] = {(u64)q->table, (u64)&q->available, (u64)&q->used};
    for (unsigned part = 0; part < 3; part++) {
        set(0x80 + 0x10 * part, (u32)addresses[part]);
        set(0x84 + 0x10 * part, (u32)(addresses[part] >> 32));
    }
    set(0x44, 1);
}

static void driver_ok(void) {
    set(0x70, 1 | 2 | 4 | 8);
    PLIC(4 * DEVICE_IRQ) = 1;
    PLIC(0x2000) = 1 << DEVICE_IRQ;
    PLIC(0x200000) = 0;
    // Interrupts only wake the hart: mstatus.MIE stays 0.
    __asm__ volatile("csrw mie, %0" ::"r"(1UL << 11));
}

static void make_available(struct queue *q, u16 head) {
    q->available.ring[q->available.index % QUEUE_SIZE] = head;
    fence();
    *(volatile u16 *)&q->available.index = (u16)(q->available.index + 1);
}

static void notify(struct queue *q) {
    fence();
    if (!(*(volatile u16 *)&q->used.flags & 1)) set(0x50, q->number);
}

// How often the device has said that its configuration space has changed.
static u32 config_changes;

// Waits for an interrupt of the device. When the configuration space has
// changed, prints its first doubleword.
static inline void wait_interrupt(void) {
    if (reg(0x70) & 64) fail("device needs reset", 0, 0);
    __asm__ volatile("wfi");
    u32 claimed = PLIC(0x200004);
    if (!claimed) return;
    u32 causes = reg(0x60);
    set(0x64, causes);
    if (causes & 2 && !(reg(0x70) & 64)) {
        config_changes++;
        text("config: ");
        number(reg(0x100) | (u64)reg(0x104) << 32);
        text("\n");
    }
    PLIC(0x200004) = claimed;
    fence();
}

static int has_used(struct queue *q) { return *(volatile u16 *)&q->used.index != q->seen; }

// Waits for the interrupt of a used buffer of any of `count` queues, and for
// nothing else: one that is lost stops the guest. Looks at the queue `first` first.
static inline struct queue *wait_any(struct queue *queues, u32 count, u32 first) {
    for (;;) {
        for (u32 place = 0; place < count; place++) {
            struct queue *q = &queues[(first + place) % count];
            if (!has_used(q)) continue;
            fence();
            return q;
        }
        wait_interrupt();
    }
}

// The smallest count of several queues: all of them have done as much.
static inline u64 least(const u64 *counts, u32 count) {
    u64 least = counts[0];
    for (u32 index = 1; index < count; index++)
        if (counts[index] < least) least = counts[index];
    return least;
}

static u16 take_used(struct queue *q) { return (u16)q->used.ring[q->seen++ % QUEUE_SIZE].id; }

static inline u16 wait_used(struct queue *q) { return take_used(wait_any(q, 1, 0)); }

ENTER_RUN;

#endif
