// A bare-metal guest with a virtio-fs device: prints the file "hello", then
// writes blocks of the file "work" and reads each back, for ever, with several
// requests in hand. Prints
//   hello: CONTENTS
//   fs: REQUESTS
// the latter every 256 requests, and FAIL when anything is wrong.
#include "virtio.h"

enum { IN_HAND = 8, BLOCK_WORDS = 512, BLOCKS = 256, LINE = 256 };
enum { LOOKUP = 1, OPEN = 14, READ = 15, FUSE_WRITE = 16, INIT = 26, CREATE = 35 };
enum { O_RDONLY = 0, O_RDWR = 2 };

struct in_header { u32 length, operation; u64 unique, node; u32 uid, gid, pid, padding; };
struct out_header { u32 length; int error; u64 unique; };

struct request {
    struct in_header in;
    u8 arguments[128] __attribute__((aligned(8)));  // behind the header
    struct out_header out;
    u8 results[256] __attribute__((aligned(8)));  // behind the header
    u64 data[BLOCK_WORDS] __attribute__((aligned(4096)));
    u8 pending;
    u64 step;  // of this slot: even ones write, odd ones read that back
};

static struct queue urgent, queue;
static struct request requests[IN_HAND];

static u64 mix(u64 a, u64 b) {
    u64 x = a * 0x9e3779b97f4a7c15UL ^ b * 0xd1b54a32d192ed03UL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9UL;
    return x ^ x >> 32;
}

// Sends header and arguments, then `sent` bytes of data; takes a header,
// `results` bytes and `received` bytes of data.
static void submit(u16 slot, u32 operation, u64 node, u32 arguments, u32 sent, u32 results, u32 received) {
    struct request *r = &requests[slot];
    static u64 unique;
    r->in = (struct in_header){40 + arguments + sent, operation, ++unique, node, 0, 0, 1, 0};
    r->out = (struct out_header){0, 1, 0};
    r->pending = 1;
    u16 first = (u16)(slot * 4), place = first;
    struct descriptor *d = queue.table;
    d[place] = (struct descriptor){(u64)&r->in, 40 + arguments, NEXT, (u16)(place + 1)};
    place++;
    if (sent) {
        d[place] = (struct descriptor){(u64)r->data, sent, NEXT, (u16)(place + 1)};
        place++;
    }
    d[place] = (struct descriptor){(u64)&r->out, 16 + results, (u16)(WRITE | (received ? NEXT : 0)), (u16)(place + 1)};
    place++;
    if (received) d[place] = (struct descriptor){(u64)r->data, received, WRITE, 0};
    make_available(&queue, first);
    notify(&queue);
}

static struct request *complete(void) {
    u16 id = wait_used(&queue);
    u16 slot = id / 4;
    if (id % 4 || slot >= IN_HAND) fail("unknown descriptor", id, 0);
    struct request *r = &requests[slot];
    if (!r->pending) fail("request done twice", slot, r->step);
    r->pending = 0;
    if (r->out.error || r->out.unique != r->in.unique) fail("error", (u64)-r->out.error, r->in.operation);
    return r;
}

static u32 name(u32 at, const char *s) {
    do requests[0].arguments[at++] = (u8)*s;
    while (*s++);
    return at;
}

static void block(u16 slot, u64 handle, u64 node) {
    struct request *r = &requests[slot];
    u64 round = r->step / 2;
    int writes = !(r->step & 1);
    for (u64 word = 0; word < BLOCK_WORDS; word++)
        r->data[word] = writes ? mix(round * IN_HAND + slot, word) : ~0UL;
    u64 *a = (u64 *)r->arguments;
    a[0] = handle;
    a[1] = (slot + IN_HAND * (round % (BLOCKS / IN_HAND))) * sizeof r->data;
    a[2] = sizeof r->data;  // and no flags
    a[3] = a[4] = 0;
    if (writes) submit(slot, FUSE_WRITE, node, 40, sizeof r->data, 8, 0);
    else submit(slot, READ, node, 40, 0, 0, sizeof r->data);
}

_Noreturn void run(void) {
    struct request *r = &requests[0];
    u32 *words = (u32 *)r->arguments;
    u64 *longs = (u64 *)r->arguments, *results = (u64 *)r->results;
    start_device(26, 0);
    start_queue(&urgent, 0);
    start_queue(&queue, 1);
    driver_ok();

    words[0] = 7;
    words[1] = 31;
    words[2] = 65536;
    words[3] = 0;
    submit(0, INIT, 0, 16, 0, 64, 0);
    complete();

    submit(0, LOOKUP, 1, name(0, "hello"), 0, 128, 0);
    complete();
    u64 node = results[0];
    words[0] = O_RDONLY;
    words[1] = 0;
    submit(0, OPEN, node, 8, 0, 16, 0);
    complete();
    longs[0] = results[0];
    longs[1] = longs[3] = longs[4] = 0;
    longs[2] = sizeof r->data;
    submit(0, READ, node, 40, 0, 0, sizeof r->data);
    complete();
    text("hello: ");
    for (u32 index = 0; index + 16 < r->out.length && ((u8 *)r->data)[index] != '\n'; index++)
        put(((char *)r->data)[index]);
    text("\n");

    words[0] = O_RDWR;
    words[1] = 0100644;
    words[2] = words[3] = 0;
    submit(0, CREATE, 1, name(16, "work"), 0, 144, 0);
    complete();
    node = results[0];
    u64 handle = results[16];

    u64 done = 0;
    for (u16 slot = 0; slot < IN_HAND; slot++) block(slot, handle, node);
    for (;;) {
        r = complete();
        u16 slot = (u16)(r - requests);
        if (r->step & 1) {
            if (r->out.length != 16 + sizeof r->data) fail("short read", r->out.length, r->step);
            u64 seed = r->step / 2 * IN_HAND + slot;
            for (u64 word = 0; word < BLOCK_WORDS; word++)
                if (r->data[word] != mix(seed, word)) fail("content", slot, r->step);
        } else if (*(u32 *)r->results != sizeof r->data) {
            fail("short write", *(u32 *)r->results, r->step);
        }
        r->step++;
        block(slot, handle, node);
        if (++done % LINE == 0) {
            text("fs: ");
            number(done);
            text("\n");
        }
    }
}
