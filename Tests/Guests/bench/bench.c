// A bare-metal guest that measures integer code of the kind CoreMark runs:
// sorting and searching a linked list, small matrix products, a state machine
// over text, and a CRC that depends on all of it. Says "begin" and "end" with
// the instructions between them, and powers the machine off.
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define ROUNDS 40000
#define NODES 64
#define SIZE 12

#define UART ((volatile u8 *)0x10000000UL)
#define FINISHER ((volatile u32 *)0x100000UL)

struct node {
    struct node *next;
    u16 key, payload;
};

static struct node nodes[NODES];
static short left[SIZE][SIZE], right[SIZE][SIZE];
static int product[SIZE][SIZE];
static char input[96];

static void put(char c) {
    while (!(UART[5] & 0x20)) {}
    UART[0] = (u8)c;
}

static void text(const char *s) {
    while (*s) put(*s++);
}

static void hex(u64 value) {
    for (int shift = 60; shift >= 0; shift -= 4) {
        u32 digit = value >> shift & 15;
        put((char)(digit < 10 ? '0' + digit : 'a' + digit - 10));
    }
}

static u32 crc16(u32 crc, u32 value, int bits) {
    for (int bit = 0; bit < bits; bit++, value >>= 1) {
        u32 carry = (crc ^ value) & 1;
        crc >>= 1;
        if (carry) crc ^= 0xa001;
    }
    return crc;
}

// Merge sort by key, then by payload.
static struct node *sort(struct node *list, u32 length) {
    if (length < 2) return list;
    struct node *second = list, *last = list;
    for (u32 i = 0; i < length / 2; i++) {
        last = second;
        second = second->next;
    }
    last->next = 0;
    struct node *a = sort(list, length / 2), *b = sort(second, length - length / 2);
    struct node head = {0, 0, 0}, *tail = &head;
    while (a && b) {
        if (a->key < b->key || (a->key == b->key && a->payload <= b->payload)) {
            tail->next = a;
            tail = a;
            a = a->next;
        } else {
            tail->next = b;
            tail = b;
            b = b->next;
        }
    }
    tail->next = a ? a : b;
    return head.next;
}

static u32 list_round(u32 seed) {
    for (u32 i = 0; i < NODES; i++) {
        seed = seed * 1103515245 + 12345;
        nodes[i] = (struct node){i + 1 < NODES ? &nodes[i + 1] : 0, (u16)(seed >> 16 & 0xff), (u16)i};
    }
    struct node *list = sort(nodes, NODES);
    u32 crc = 0;
    for (u32 wanted = 0; wanted < 8; wanted++) {
        struct node *n = list;
        while (n && n->key != (wanted * 31 & 0xff)) n = n->next;
        crc = crc16(crc, n ? n->payload : wanted, 16);
    }
    return crc16(crc, list->key, 16);
}

static u32 matrix_round(u32 seed) {
    for (u32 i = 0; i < SIZE; i++)
        for (u32 j = 0; j < SIZE; j++) {
            seed = seed * 1103515245 + 12345;
            left[i][j] = (short)(seed >> 16);
            right[i][j] = (short)(seed >> 8);
        }
    u32 sum = 0;
    for (u32 i = 0; i < SIZE; i++)
        for (u32 j = 0; j < SIZE; j++) {
            int total = 0;
            for (u32 k = 0; k < SIZE; k++) total += left[i][k] * right[k][j];
            product[i][j] = total;
            sum += (u32)(total >> 4);
        }
    return sum ^ (u32)product[seed % SIZE][3];
}

// Counts integers, fractions, words and the rest in a text made from the seed.
static u32 state_round(u32 seed) {
    static const char alphabet[16] = {'0', '1', '5', '9', '.', ',', ' ', '-', '+', 'e', 'x', '7', '3', ',', ' ', 'q'};
    for (u32 i = 0; i < sizeof input; i++) {
        seed = seed * 1103515245 + 12345;
        input[i] = alphabet[seed >> 20 & 15];
    }
    enum { START, SIGN, INTEGER, FRACTION, WORD, STATES } state = START;
    u32 counts[STATES] = {0};
    for (u32 i = 0; i < sizeof input; i++) {
        char c = input[i];
        if (c == ',' || c == ' ') {
            counts[state]++;
            state = START;
            continue;
        }
        int digit = c >= '0' && c <= '9';
        switch (state) {
        case START: state = digit ? INTEGER : c == '-' || c == '+' ? SIGN : c == '.' ? FRACTION : WORD; break;
        case SIGN: state = digit ? INTEGER : c == '.' ? FRACTION : WORD; break;
        case INTEGER: state = digit ? INTEGER : c == '.' ? FRACTION : WORD; break;
        case FRACTION: state = digit ? FRACTION : WORD; break;
        default: break;
        }
    }
    u32 crc = 0;
    for (u32 i = 0; i < STATES; i++) crc = crc16(crc, counts[i], 16);
    return crc;
}

_Noreturn void run(void) {
    u64 before, after;
    u32 crc = 0;
    text("baton-bench: begin\r\n");
    __asm__ volatile("csrr %0, minstret" : "=r"(before) : : "memory");
    for (u32 round = 0; round < ROUNDS; round++) {
        crc = crc16(crc, list_round(round ^ crc), 16);
        crc = crc16(crc, matrix_round(round ^ crc), 32);
        crc = crc16(crc, state_round(round ^ crc), 16);
    }
    __asm__ volatile("csrr %0, minstret" : "=r"(after) : : "memory");
    text("baton-bench: end instructions=");
    hex(after - before);
    text(" crc=");
    hex(crc);
    text("\r\n");
    *FINISHER = 0x5555;
    for (;;) __asm__ volatile("wfi");
}

__asm__(".section .text.entry, \"ax\"\n"
        ".global _start\n"
        "_start:\n"
        "bnez a0, 1f\n"
        "lla sp, stack_top\n"
        "j run\n"
        "1: wfi\n"
        "j 1b\n");
