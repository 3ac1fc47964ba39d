// The guest's work on disks and virtio network cards.

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include "lab.h"

// Disk: each block says which round wrote it. It is read back, and so is one of long ago.

enum { block_size = 4096, block_words = block_size / 8 };

static void fill(uint64_t *block, uint64_t round)
{
    for (int i = 0; i < block_words; i++)
        block[i] = mix(round, i);
}

// Of a request on a block: 0 or its error.
static int outcome(const char *what, uint64_t block, ssize_t count)
{
    if (count >= 0 && count != block_size)
        FAIL("%s block %lu: short", what, block);
    return count < 0 ? errno : 0;
}

static int check_block(int disk, uint64_t *block, uint64_t round, uint64_t blocks)
{
    memset(block, 0xee, block_size);
    int error = outcome("reading", round % blocks, pread(disk, block, block_size, round % blocks * block_size));
    if (error)
        return error;
    for (int i = 0; i < block_words; i++)
        if (block[i] != mix(round, i))
            FAIL("block %lu, word %d is %lx, not %lx of round %lu", round % blocks, i, block[i], mix(round, i), round);
    return 0;
}

int work_while_there(int disk, uint64_t *counter)
{
    uint64_t size = lseek(disk, 0, SEEK_END), blocks = size / block_size;
    uint64_t *block = mmap(NULL, block_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t round = 0;; round++) {
        fill(block, round);
        int error = outcome("writing", round % blocks, pwrite(disk, block, block_size, round % blocks * block_size));
        if (!error && round % 32 == 31 && fdatasync(disk))
            error = errno;
        uint64_t back = mix(round, 1) % (round < blocks ? round + 1 : blocks);
        if (!error)
            error = check_block(disk, block, round, blocks);
        if (!error)
            error = check_block(disk, block, round - back, blocks);
        if (error) {
            munmap(block, block_size);
            return error;
        }
        add(counter);
        usleep(2000);
    }
}

static void work_on(int disk, uint64_t *counter)
{
    int error = work_while_there(disk, counter);
    FAIL("a disk after %lu rounds: %s", *counter, strerror(error));
}

void disk_work(int disk) { work_on(disk, &shared->blocks); }

void passed_disk_work(int disk) { work_on(disk, &shared->passed_blocks); }

// Network: numbered frames over two cards and back, each of which must come once.

enum { frame_type = 0x88b5, frame_length = 512 };

static int open_card(const char *name)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    // Of no protocol until it is bound: it would get the frames of all cards.
    int card = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (card < 0 || ioctl(card, SIOCGIFFLAGS, &request))
        return -1;
    request.ifr_flags |= IFF_UP | IFF_PROMISC;
    if (ioctl(card, SIOCSIFFLAGS, &request) || ioctl(card, SIOCGIFINDEX, &request))
        FAIL("%s: %s", request.ifr_name, strerror(errno));
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(frame_type), .sll_ifindex = request.ifr_ifindex};
    int one = 1;
    if (bind(card, (struct sockaddr *)&address, sizeof address) ||
        setsockopt(card, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one))
        FAIL("%s: %s", request.ifr_name, strerror(errno));
    return card;
}

// By their driver, as the kernel numbers cards in the order in which they come.
static int open_card_of(const char *driver, int number)
{
    for (int i = 0; i < 8; i++) {
        char name[IFNAMSIZ], path[64], target[128];
        snprintf(name, sizeof name, "eth%d", i);
        snprintf(path, sizeof path, "/sys/class/net/%s/device/driver", name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        target[length > 0 ? length : 0] = 0;
        const char *found = strrchr(target, '/');
        if (found && !strcmp(found + 1, driver) && number-- == 0)
            return open_card(name);
    }
    return -1;
}

int open_virtio_card(int number) { return open_card_of("virtio_net", number); }

int find_passed_card(void) { return open_card_of("e1000e", 0); }

void return_frames(int card)
{
    uint8_t frame[2048];
    for (;;) {
        ssize_t count = recv(card, frame, sizeof frame, 0);
        if (count < 0)
            FAIL("receiving a frame: %s", strerror(errno));
        if (send(card, frame, count, 0) != count)
            FAIL("returning a frame: %s", strerror(errno));
        add(&shared->returned);
    }
}

static void make_frame(uint64_t *frame, uint64_t number)
{
    memset(frame, 0xff, 12);
    for (int i = 2; i < frame_length / 8; i++)
        frame[i] = mix(number, i);
    ((uint8_t *)frame)[12] = frame_type >> 8;
    ((uint8_t *)frame)[13] = frame_type & 0xff;
    frame[2] = number;
}

static void circulate(int card, uint64_t *counter, uint64_t *longest)
{
    uint64_t sent[frame_length / 8] = {0}, received[256];
    for (uint64_t number = 0;; number++) {
        make_frame(sent, number);
        uint64_t begun = now(CLOCK_MONOTONIC);
        if (send(card, sent, frame_length, 0) != frame_length)
            FAIL("sending frame %lu: %s", number, strerror(errno));
        struct pollfd ready = {.fd = card, .events = POLLIN};
        if (poll(&ready, 1, 30000) != 1)
            FAIL("frame %lu was lost (%lu were returned)", number, shared->returned);
        ssize_t count = recv(card, received, sizeof received, 0);
        if (count != frame_length || memcmp(received, sent, frame_length))
            FAIL("in place of frame %lu came %lu, of %zd bytes", number, received[2], count);
        uint64_t took = now(CLOCK_MONOTONIC) - begun;
        if (took > *longest)
            *longest = took;
        add(counter);
        usleep(1000);
    }
}

void send_frames(int card) { circulate(card, &shared->frames, &shared->longest_frame); }

// A real card's link takes a while to come up, and drops what is sent before.
static void await_link(int card)
{
    for (int i = 0; i < 600; i++) {
        struct sockaddr_ll address;
        socklen_t size = sizeof address;
        struct ifreq request = {0};
        if (getsockname(card, (struct sockaddr *)&address, &size))
            break;
        request.ifr_ifindex = address.sll_ifindex;
        if (ioctl(card, SIOCGIFNAME, &request) || ioctl(card, SIOCGIFFLAGS, &request))
            break;
        if (request.ifr_flags & IFF_RUNNING)
            return;
        usleep(100000);
    }
    FAIL("the passed-through card has no link");
}

void passed_card_work(int card)
{
    await_link(card);
    circulate(card, &shared->passed_frames, &shared->longest_passed_frame);
}
