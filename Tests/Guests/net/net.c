// A bare-metal guest that answers what comes to 10.77.0.2 on its virtio network
// card: ARP, ICMP echo, and UDP to any port (sent back as it came). It tells of
// itself with one gratuitous ARP, and prints
//   net: ANSWERS
// every 256 answers. It drops nothing: a frame that is lost was lost outside.
#include "virtio.h"

enum { HEADER = 12, BUFFER = 2048, ETHERNET = 14, ARP = 28, IP = 20, LINE = 256 };

static const u8 address[4] = {10, 77, 0, 2};
static u8 mac[6];
static struct queue receive, transmit;
static u8 in[QUEUE_SIZE][BUFFER] __attribute__((aligned(16)));
static u8 out[QUEUE_SIZE][BUFFER] __attribute__((aligned(16)));
static u16 sent;

static void copy(u8 *to, const u8 *from, u32 count) {
    for (u32 place = 0; place < count; place++) to[place] = from[place];
}

static int equal(const u8 *a, const u8 *b, u32 count) {
    for (u32 place = 0; place < count; place++)
        if (a[place] != b[place]) return 0;
    return 1;
}

static void swap(u8 *a, u8 *b, u32 count) {
    for (u32 place = 0; place < count; place++) {
        u8 byte = a[place];
        a[place] = b[place];
        b[place] = byte;
    }
}

// A free buffer for a frame, whose header is all zeroes.
static u8 *frame(void) {
    while ((u16)(sent - *(volatile u16 *)&transmit.used.index) >= QUEUE_SIZE) {
        if (reg(0x70) & 64) fail("device needs reset", sent, 0);
    }
    return out[sent % QUEUE_SIZE] + HEADER;
}

static void send(u32 length) {
    u16 slot = sent++ % QUEUE_SIZE;
    transmit.table[slot] = (struct descriptor){(u64)out[slot], HEADER + length, 0, 0};
    make_available(&transmit, slot);
    notify(&transmit);
}

static void offer(u16 slot) {
    receive.table[slot] = (struct descriptor){(u64)in[slot], BUFFER, WRITE, 0};
    make_available(&receive, slot);
}

// An ARP packet from here, to all or to one.
static void send_arp(u8 operation, const u8 *to_mac, const u8 *to_address) {
    static const u8 head[8] = {0, 1, 8, 0, 6, 4, 0, 0};
    u8 *f = frame();
    copy(f, to_mac, 6);
    copy(f + 6, mac, 6);
    f[12] = 8;
    f[13] = 6;
    u8 *arp = f + ETHERNET;
    copy(arp, head, 8);
    arp[7] = operation;
    copy(arp + 8, mac, 6);
    copy(arp + 14, address, 4);
    copy(arp + 18, to_mac, 6);
    copy(arp + 24, to_address, 4);
    send(ETHERNET + ARP);
}

// Returns whether the frame was for here and has been answered.
static int answer(u8 *f, u32 length) {
    u8 *body = f + ETHERNET;
    if (length >= ETHERNET + ARP && f[12] == 8 && f[13] == 6) {
        if (body[7] != 1 || !equal(body + 24, address, 4)) return 0;
        send_arp(2, body + 8, body + 14);
        return 1;
    }
    if (length < ETHERNET + IP + 8 || f[12] != 8 || f[13] != 0 || body[0] != 0x45) return 0;
    if (!equal(f, mac, 6) || !equal(body + 16, address, 4)) return 0;
    u8 *data = body + IP;
    if (body[9] == 1) {
        if (data[0] != 8) return 0;
        // Echo request to reply: the checksum grows by what the type shrinks.
        u32 sum = (u32)(data[2] << 8 | data[3]) + 0x0800;
        sum = (sum & 0xffff) + (sum >> 16);
        data[0] = 0;
        data[2] = (u8)(sum >> 8);
        data[3] = (u8)sum;
    } else if (body[9] == 17) {
        swap(data, data + 2, 2);
    } else {
        return 0;
    }
    // Checksums do not change when both ends are exchanged.
    swap(f, f + 6, 6);
    swap(body + 12, body + 16, 4);
    copy(frame(), f, length);
    send(length);
    return 1;
}

_Noreturn void run(void) {
    static const u8 all[6] = {255, 255, 255, 255, 255, 255};
    u64 answers = 0;
    start_device(1, 1 << 5);
    for (u32 place = 0; place < 6; place++) mac[place] = ((volatile u8 *)DEVICE)[0x100 + place];
    start_queue(&receive, 0);
    start_queue(&transmit, 1);
    transmit.available.flags = 1;  // no interrupts: looked at when a buffer is needed
    for (u16 slot = 0; slot < QUEUE_SIZE; slot++) offer(slot);
    driver_ok();
    notify(&receive);
    send_arp(1, all, address);
    text("net: ready\n");
    for (;;) {
        u16 slot = wait_used(&receive);
        u32 length = receive.used.ring[(u16)(receive.seen - 1) % QUEUE_SIZE].length;
        if (slot >= QUEUE_SIZE) fail("unknown descriptor", slot, answers);
        if (length > HEADER && answer(in[slot] + HEADER, length - HEADER) && ++answers % LINE == 0) {
            text("net: ");
            number(answers);
            text("\n");
        }
        offer(slot);
        notify(&receive);
    }
}
