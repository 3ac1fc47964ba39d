// A bare-metal guest that answers what comes to 10.77.0.2 to 10.77.0.9 on its
// virtio network card: ARP, ICMP echo, and UDP to any port (sent back as it
// came), and one TCP connection to any port (tcp.h). It tells of itself with one gratuitous ARP, and prints
//   net: ANSWERS
// every 256 answers. Where the card has several pairs of queues it uses up to
// four, answers a frame by the pair that it came in, and prints the answers of
// each pair behind the sum. It drops nothing: a frame that is lost was lost
// outside. When the card asks for an announcement it sends its ARP again, and
// prints "net: announced".
#include "virtio.h"

enum { HEADER = 12, BUFFER = 2048, ETHERNET = 14, ARP = 28, IP = 20, LINE = 256, PAIRS = 4 };
enum { STATUS = 1 << 16, CTRL_VQ = 1 << 17, GUEST_ANNOUNCE = 1 << 21, MQ = 1 << 22 };
enum { S_ANNOUNCE = 2 };

static const u8 address[4] = {10, 77, 0, 2};
static u8 mac[6];
static struct pair {
    struct queue receive, transmit;
    u8 in[QUEUE_SIZE][BUFFER] __attribute__((aligned(16)));
    u8 out[QUEUE_SIZE][BUFFER] __attribute__((aligned(16)));
    u16 sent;
    u64 answers;
} pairs[PAIRS];
static struct queue control;

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

#include "tcp.h"

static int is_own(const u8 *ip) { return equal(ip, address, 3) && ip[3] >= address[3] && ip[3] < 10; }

// A free buffer for a frame, whose header is all zeroes.
static u8 *frame(struct pair *p) {
    while ((u16)(p->sent - *(volatile u16 *)&p->transmit.used.index) >= QUEUE_SIZE) {
        if (reg(0x70) & 64) fail("device needs reset", p->sent, 0);
    }
    return p->out[p->sent % QUEUE_SIZE] + HEADER;
}

static void send(struct pair *p, u32 length) {
    u16 slot = p->sent++ % QUEUE_SIZE;
    p->transmit.table[slot] = (struct descriptor){(u64)p->out[slot], HEADER + length, 0, 0};
    make_available(&p->transmit, slot);
    notify(&p->transmit);
}

static void offer(struct pair *p, u16 slot) {
    p->receive.table[slot] = (struct descriptor){(u64)p->in[slot], BUFFER, WRITE, 0};
    make_available(&p->receive, slot);
}

// An ARP packet from here, to all or to one.
static void send_arp(struct pair *p, u8 operation, const u8 *own, const u8 *to_mac, const u8 *to_address) {
    static const u8 head[8] = {0, 1, 8, 0, 6, 4, 0, 0};
    u8 *f = frame(p);
    copy(f, to_mac, 6);
    copy(f + 6, mac, 6);
    f[12] = 8;
    f[13] = 6;
    u8 *arp = f + ETHERNET;
    copy(arp, head, 8);
    arp[7] = operation;
    copy(arp + 8, mac, 6);
    copy(arp + 14, own, 4);
    copy(arp + 18, to_mac, 6);
    copy(arp + 24, to_address, 4);
    send(p, ETHERNET + ARP);
}

// Returns whether the frame was for here and has been answered.
static int answer(struct pair *p, u8 *f, u32 length) {
    u8 *body = f + ETHERNET;
    if (length >= ETHERNET + ARP && f[12] == 8 && f[13] == 6) {
        if (body[7] != 1 || !is_own(body + 24)) return 0;
        send_arp(p, 2, body + 24, body + 8, body + 14);
        return 1;
    }
    if (length < ETHERNET + IP + 8 || f[12] != 8 || f[13] != 0 || body[0] != 0x45) return 0;
    if (!equal(f, mac, 6) || !is_own(body + 16)) return 0;
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
    } else if (body[9] == 6) {
        u32 count = answer_tcp(body, length - ETHERNET);
        if (!count) return 0;
        swap(f, f + 6, 6);
        copy(frame(p), f, ETHERNET + count);
        send(p, ETHERNET + count);
        return 1;
    } else {
        return 0;
    }
    // Checksums do not change when both ends are exchanged.
    swap(f, f + 6, 6);
    swap(body + 12, body + 16, 4);
    copy(frame(p), f, length);
    send(p, length);
    return 1;
}

static void start_pair(struct pair *p, u32 index) {
    start_queue(&p->receive, 2 * index);
    start_queue(&p->transmit, 2 * index + 1);
    p->transmit.available.flags = 1;  // no interrupts: looked at when a buffer is needed
    for (u16 slot = 0; slot < QUEUE_SIZE; slot++) offer(p, slot);
}

// Gives the card a command, with `size` bytes of an argument.
static void command(u8 class, u16 argument, u32 size) {
    static u8 request[4], reply[1];
    request[0] = class;
    request[2] = (u8)argument;
    request[3] = (u8)(argument >> 8);
    reply[0] = 0xff;
    control.table[0] = (struct descriptor){(u64)request, 2 + size, NEXT, 1};
    control.table[1] = (struct descriptor){(u64)reply, sizeof reply, WRITE, 0};
    make_available(&control, 0);
    notify(&control);
    wait_used(&control);
    if (reply[0]) fail("command refused", class, reply[0]);
}

// Announces itself if the card asks for it, and acknowledges that.
static void look_at_status(void) {
    static const u8 all[6] = {255, 255, 255, 255, 255, 255};
    if (!(((volatile u8 *)DEVICE)[0x106] & S_ANNOUNCE)) return;
    send_arp(pairs, 1, address, all, address);
    command(3, 0, 0);
    text("net: announced\n");
}

static void take(struct pair *p) {
    u16 slot = wait_used(&p->receive);
    u32 length = p->receive.used.ring[(u16)(p->receive.seen - 1) % QUEUE_SIZE].length;
    if (slot >= QUEUE_SIZE) fail("unknown descriptor", slot, p->answers);
    if (length > HEADER && answer(p, p->in[slot] + HEADER, length - HEADER)) p->answers++;
    offer(p, slot);
    notify(&p->receive);
}

_Noreturn void run(void) {
    static const u8 all[6] = {255, 255, 255, 255, 255, 255};
    u64 printed = 0;
    u32 seen = 0;
    u8 count = 1, control_index = 2;
    start_device(1, 1 << 5 | STATUS | CTRL_VQ | GUEST_ANNOUNCE | MQ);
    for (u32 place = 0; place < 6; place++) mac[place] = ((volatile u8 *)DEVICE)[0x100 + place];
    set(0x14, 0);
    u32 offered = reg(0x10);
    if (offered & MQ) {
        u8 most = ((volatile u8 *)DEVICE)[0x108];
        count = most < PAIRS ? most : PAIRS;
        control_index = 2 * most;
    }
    if (offered & CTRL_VQ) start_queue(&control, control_index);
    for (u8 index = 0; index < count; index++) start_pair(pairs + index, index);
    driver_ok();
    if (count > 1) command(4, count, 2);
    for (u8 index = 0; index < count; index++) notify(&pairs[index].receive);
    send_arp(pairs, 1, address, all, address);
    text("net: ready\n");
    for (;;) {
        u64 sum = 0;
        int idle = 1;
        for (u8 index = 0; index < count; index++) {
            if (has_used(&pairs[index].receive)) {
                take(pairs + index);
                idle = 0;
            }
            sum += pairs[index].answers;
        }
        if (sum - printed >= LINE) {
            text("net: ");
            number(printed = sum);
            for (u8 index = 0; count > 1 && index < count; index++) {
                text(" ");
                number(pairs[index].answers);
            }
            text("\n");
        }
        if (idle) wait_interrupt();
        if (seen == config_changes) continue;
        seen = config_changes;
        look_at_status();
    }
}
