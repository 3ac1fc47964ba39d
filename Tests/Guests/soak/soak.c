// A bare-metal guest for `baton-demo soak`. It does what the harness' own guest does (Sources/Harness/Guest), and more:
// it counts, looks after memory that it has filled, works on a virtio disk, sends back what the serial port receives, and
// has devices in slots come and go.
//
// Its page, for whoever looks from outside:
//   0x80400000  magic "BATONCNT"
//   0x80400008  the counter, stored last
//   0x80400010  the checksum if the counter is even, at 0x80400018 if it is odd
//   0x80400020  0, or what it found changed (`Finding` of the harness)
//   0x80400028  how many lines it has written
//   0x80400030  how many rounds of its disk it has done
//   0x80400038  of the request to its disk that was not carried out as it must be: slot, step, round, the word that is
//               another (-1: the status), what it is
// After every STEPS_PER_LINE counts it writes a line: count=%016x line=%016x.
//
// The disk: each of SLOTS slots has PLACES blocks, and one request in hand. In each round it writes the next block, reads
// it back, reads the oldest one, and discards that: so that all places but one hold what was written last, and each write
// needs room again. A block begins with MAGIC, the round and the slot; DiskPattern in Sources/Soak knows the rest.
//
// With SERVED the disk is served by a process of its own, which may stand still between a request's end and the interrupt
// that tells of it: the request is looked at when that has come. A lost one keeps the disk from going on.
#define QUEUE_LENGTH 16
#include "virtio.h"

#define PAGE ((volatile u64 *)0x80400000UL)
#define PAGE_MAGIC 0x544e434e4f544142UL
#define MULTIPLIER 6364136223846793005UL
#define INCREMENT 1442695040888963407UL
#define STEPS_PER_LINE (1UL << 16)
#define FILLED ((volatile u64 *)0x80600000UL)
#define CLOCK R64(0x0200bff8UL)
#define TIMER R64(0x02004000UL)

enum { FILLED_WORDS = 1 << 17, WATCHED_WORDS = 1 << 9, SLEEP_TICKS = 40000 };
enum { LOST_COUNTER = 1, LOST_INTERRUPT = 7, BROKEN_DEVICE = 8, LOST_DISK = 10, LOST_MEMORY = 11 };
enum { SLOTS = 4, PLACES = 32, BLOCK_WORDS = 512, SECTORS = 8 };
#define BLOCK_MAGIC 0x4b53494453414b53UL
enum { READ = 0, WRITE_OUT = 1, DISCARD = 11, CAN_DISCARD = 1 << 13 };
// Registers of a slot, from its port's PCI Express capability on. Off are power and its indicator.
enum { ROOT_PORT = 0x000c1b36, EXPRESS = 0x10, SLOT_CONTROL = 0x18, SLOT_STATUS = 0x1a };
enum { BUTTON = 1, PRESENCE = 1 << 6, SLOT_OFF = 7 << 8, INDICATOR_ON = 1 << 8 };
enum step { CLEARS, WRITES, READS_BACK, READS_OLDEST, DISCARDS };

struct request {
    struct { u32 type, reserved; u64 sector; } head;
    struct { u64 sector; u32 sectors, flags; } range;
    u64 data[BLOCK_WORDS] __attribute__((aligned(4096)));
    u8 status, pending;
    enum step step;
    u64 round;
};

static struct queue queue;
static struct request requests[SLOTS];
static u64 rounds;
// Requests have ended, of which no interrupt has told yet.
static int owes_interrupt;

_Noreturn static void found(u64 what) {
    PAGE[4] = what;
    for (;;) __asm__ volatile("wfi");
}

static u64 mix(u64 a, u64 b) {
    u64 x = a * 0x9e3779b97f4a7c15UL ^ b * 0xd1b54a32d192ed03UL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9UL;
    return x ^ x >> 32;
}

static u64 content(u64 slot, u64 round, u64 word) {
    switch (word) {
    case 0: return BLOCK_MAGIC;
    case 1: return round;
    case 2: return slot;
    default: return mix(round * SLOTS + slot, word);
    }
}

static void submit(u16 slot) {
    struct request *r = &requests[slot];
    u64 place = (r->round + (r->step == READS_OLDEST || r->step == DISCARDS)) % PLACES;
    u64 sector = (slot * PLACES + place) * SECTORS;
    u16 first = (u16)(slot * 3);
    struct descriptor *d = &queue.table[first];
    r->head.sector = sector;
    r->status = 0xff;
    r->pending = 1;
    d[0] = (struct descriptor){(u64)&r->head, 16, NEXT, (u16)(first + 1)};
    d[2] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
    if (r->step == CLEARS || r->step == DISCARDS) {
        r->head.type = DISCARD;
        r->head.sector = 0;
        r->range.sector = r->step == CLEARS ? slot * PLACES * SECTORS : sector;
        r->range.sectors = r->step == CLEARS ? PLACES * SECTORS : SECTORS;
        r->range.flags = 0;
        d[1] = (struct descriptor){(u64)&r->range, sizeof r->range, NEXT, (u16)(first + 2)};
    } else {
        int writes = r->step == WRITES;
        r->head.type = writes ? WRITE_OUT : READ;
        for (u64 word = 0; word < BLOCK_WORDS; word++) r->data[word] = writes ? content(slot, r->round, word) : ~0UL;
        d[1] = (struct descriptor){(u64)r->data, sizeof r->data, (u16)(NEXT | (writes ? 0 : WRITE)), (u16)(first + 2)};
    }
    make_available(&queue, first);
}

_Noreturn static void found_on_disk(struct request *r, u64 slot, u64 word, u64 value) {
    PAGE[7] = slot;
    PAGE[8] = r->step;
    PAGE[9] = r->round;
    PAGE[10] = word;
    PAGE[11] = value;
    found(LOST_DISK);
}

static void expect_block(struct request *r, u64 slot, u64 round) {
    for (u64 word = 0; word < BLOCK_WORDS; word++)
        if (r->data[word] != content(slot, round, word)) found_on_disk(r, slot, word, r->data[word]);
}

static void finish(u16 id) {
    u16 slot = id / 3;
    // None that it has in hand: the slot says which.
    if (id % 3 || slot >= SLOTS || !requests[slot].pending) found_on_disk(&requests[0], id, ~0UL, 0);
    struct request *r = &requests[slot];
    r->pending = 0;
    u64 status = *(volatile u8 *)&r->status;
    if (status) found_on_disk(r, slot, ~0UL, status);
    switch (r->step) {
    case CLEARS: r->step = WRITES; break;
    case WRITES: r->step = READS_BACK; break;
    case READS_BACK:
        expect_block(r, slot, r->round);
        r->step = r->round + 1 >= PLACES ? READS_OLDEST : DISCARDS;
        break;
    case READS_OLDEST:
        expect_block(r, slot, r->round + 1 - PLACES);
        r->step = DISCARDS;
        break;
    case DISCARDS:
        r->round++;
        r->step = WRITES;
        rounds++;
        break;
    }
    submit(slot);
}

// Takes what the disk has done. Its interrupt is there by now, or by the next look.
static void look_after_disk(void) {
    if (reg(0x70) & 64) found(BROKEN_DEVICE);
    int owed = owes_interrupt, was_told = 0;
    u32 claimed = PLIC(0x200004);
    if (claimed) {
        set(0x64, reg(0x60));
        PLIC(0x200004) = claimed;
        fence();
        was_told = 1;
    }
#ifdef SERVED
    if (!was_told) return;
#endif
    if (owed && !was_told) found(LOST_INTERRUPT);
    owes_interrupt = 0;
    int any = 0;
    while (has_used(&queue)) {
        fence();
        finish(take_used(&queue));
        if (!was_told) owes_interrupt = 1;
        any = 1;
    }
    if (any) notify(&queue);
    PAGE[6] = rounds;
}

// Whoever presses a slot's button gets power for what is in it, or has it let go of (PCI Express 5.0, 6.7.1).
static void answer_buttons(void) {
    for (u64 slot = 0; slot < 32; slot++) {
        if (R32(CONFIG(slot, 0)) != ROOT_PORT) continue;
        u64 place = R8(CONFIG(slot, 0x34));
        while (R8(CONFIG(slot, place)) != EXPRESS) place = R8(CONFIG(slot, place + 1));
        u16 status = R16(CONFIG(slot, place + SLOT_STATUS));
        if (!(status & BUTTON)) continue;
        R16(CONFIG(slot, place + SLOT_STATUS)) = BUTTON;
        if (!(status & PRESENCE)) continue;
        u16 control = R16(CONFIG(slot, place + SLOT_CONTROL));
        int is_off = (control & SLOT_OFF) == SLOT_OFF;
        R16(CONFIG(slot, place + SLOT_CONTROL)) = (u16)(is_off ? (control & ~SLOT_OFF) | INDICATOR_ON : control | SLOT_OFF);
    }
}

static void look_after_memory(u64 line) {
    u64 start = line * WATCHED_WORDS % FILLED_WORDS;
    for (u64 word = start; word < start + WATCHED_WORDS; word++)
        if (FILLED[word] != mix(word, 7)) found(LOST_MEMORY);
}

static void hex(u64 value) {
    for (int shift = 60; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

static void sleep(void) {
    TIMER = CLOCK + SLEEP_TICKS;
    u64 pending;
    do {
        __asm__ volatile("wfi");
        __asm__ volatile("csrr %0, mip" : "=r"(pending));
    } while (!(pending & 1 << 7));
}

_Noreturn void run(void) {
    u64 count = 0, sum = 0, line = 0;
    for (u32 word = 0; word < 12; word++) PAGE[word] = 0;
    // After a reset there is what was before.
    rounds = 0;
    owes_interrupt = 0;
    UART[2] = 1;
    for (u64 word = 0; word < FILLED_WORDS; word++) FILLED[word] = mix(word, 7);
    start_device(2, CAN_DISCARD);
    if (!(reg(0x10) & CAN_DISCARD)) fail("the disk discards nothing", reg(0x10), 0);
    start_queue(&queue, 0);
    driver_ok();
    // The timer wakes, and the disk waits for its turn.
    __asm__ volatile("csrw mie, %0" ::"r"(1UL << 7));
    for (u16 slot = 0; slot < SLOTS; slot++) {
        requests[slot].step = CLEARS;
        requests[slot].round = 0;
        submit(slot);
    }
    notify(&queue);
    PAGE[0] = PAGE_MAGIC;
    for (;;) {
        for (u64 left = STEPS_PER_LINE; left; left--) {
            // What is in RAM must be what this hart put there one step ago.
            if (PAGE[1] != count) found(LOST_COUNTER);
            count += 1;
            sum = sum * MULTIPLIER + INCREMENT;
            PAGE[2 + (count & 1)] = sum;
            PAGE[1] = count;
        }
        while (UART[5] & 1) put((char)UART[0]);
        look_after_disk();
        look_after_memory(line);
        answer_buttons();
        text("count=");
        hex(count);
        text(" line=");
        hex(++line);
        text("\r\n");
        PAGE[5] = line;
        sleep();
    }
}
