// A TCP server of one connection, which sends back what it receives, on any port. It never sends anything twice: what is
// lost is not found again.

static u32 tcp_received, tcp_sent;  // the next sequence numbers of either side
enum { FIN = 1, SYN = 2, RESET = 4, PUSH = 8, ACK = 16, TCP_HEADER = 20 };

static u32 get32(const u8 *p) { return (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3]; }

static void put16(u8 *p, u32 value) {
    p[0] = (u8)(value >> 8);
    p[1] = (u8)value;
}

static void put32(u8 *p, u32 value) {
    put16(p, value >> 16);
    put16(p + 2, value);
}

static u32 sum_of(const u8 *p, u32 length, u32 sum) {
    for (u32 place = 0; place < length; place++) sum += (u32)p[place] << (place & 1 ? 0 : 8);
    return sum;
}

static u32 folded(u32 sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return ~sum & 0xffff;
}

// Makes the answer to a segment in its place, from the IP header on. Returns its length, 0 for none.
static u32 answer_tcp(u8 *ip, u32 length) {
    u32 total = (u32)ip[2] << 8 | ip[3];
    u8 *tcp = ip + 20;
    u32 head = (u32)(tcp[12] >> 4) * 4;
    if (total > length || head < TCP_HEADER || 20 + head > total) return 0;
    u32 count = total - 20 - head, sequence = get32(tcp + 4);
    u8 flags = tcp[13], reply = ACK;
    if (flags & RESET) return 0;
    if (flags & SYN) {
        tcp_received = sequence + 1;
        tcp_sent = 1000;
        reply |= SYN;
        count = 0;
    } else if (sequence != tcp_received) {
        count = 0;  // sent again: its answer is on the way
    } else {
        if (count == 0 && !(flags & FIN)) return 0;
        tcp_received += count + (flags & FIN ? 1 : 0);
        reply |= (u8)((count ? PUSH : 0) | (flags & FIN));
    }
    for (u32 place = 0; place < count; place++) tcp[TCP_HEADER + place] = tcp[head + place];
    swap(tcp, tcp + 2, 2);
    swap(ip + 12, ip + 16, 4);
    put32(tcp + 4, tcp_sent);
    put32(tcp + 8, tcp_received);
    tcp_sent += count + (reply & (SYN | FIN) ? 1 : 0);
    tcp[12] = TCP_HEADER / 4 << 4;
    tcp[13] = reply;
    put16(tcp + 14, 0xffff);
    put32(tcp + 16, 0);
    put16(ip + 2, 20 + TCP_HEADER + count);
    put16(ip + 10, 0);
    put16(ip + 10, folded(sum_of(ip, 20, 0)));
    u32 pseudo = sum_of(ip + 12, 8, 6 + TCP_HEADER + count);
    put16(tcp + 16, folded(sum_of(tcp, TCP_HEADER + count, pseudo)));
    return 20 + TCP_HEADER + count;
}
