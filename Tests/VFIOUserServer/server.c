#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    VERSION = 1, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS,
    REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, DEVICE_RESET
};
enum { CONFIG_SIZE = 256, ROM_SIZE = 0x8000, REGIONS = 9, IRQS = 5, RANGES = 16, ROOM = 1 << 16 };

struct dma_map { uint32_t argsz, flags; uint64_t offset, address, size; };
struct access { uint64_t offset; uint32_t region, count; uint8_t data[]; };
struct dma_access { uint64_t address, count; };

static int connection, twin = -1, bar2_file;
static uint8_t config[CONFIG_SIZE], rom[ROM_SIZE];
static struct range { uint64_t start, size; uint8_t *host; bool writable; } ranges[RANGES];
static unsigned range_count;
static int kind = -1, events[VECTORS];
static unsigned event_count;
/* The eventfd of the device's errors, which is there beside its interrupts. */
static int error_event = -1;
static uint16_t own_id = 0x8000;
static bool has_asked;

/* The message that is being served. */
static struct header header;
static uint8_t data[ROOM];
static int fds[MOST_FDS];
static unsigned fd_count;

static void put16(unsigned at, uint16_t value) { memcpy(config + at, &value, 2); }
static void put32(unsigned at, uint32_t value) { memcpy(config + at, &value, 4); }

void server_start(int file) {
    bar2_file = file;
    put32(0x00, 0x56491234);
    put16(0x06, 0x10);
    put32(0x08, 0xff000001);
    put32(0x18, 0x0c); /* BAR 2: 64 bits, prefetchable */
    put32(0x2c, 0x00011234);
    config[0x34] = 0x40;
    config[0x3d] = 1;
    put16(0x40, 0x5001); /* power management */
    put16(0x42, 0x0003);
    put16(0x50, 0x6011); /* MSI-X */
    put16(0x52, VECTORS - 1);
    put32(0x54, 2);
    put32(0x58, 0x8002);
    put16(0x60, 0x0005); /* MSI: 64 bits, no masks */
    put16(0x62, 0x0080 | 2 << 1);
    for (unsigned i = 0; i < ROM_SIZE; i++) rom[i] = (uint8_t)(i * 7);
    rom[0] = 0x55;
    rom[1] = 0xaa;
    rom[2] = ROM_SIZE / 512;
}

static void drop_events(void) {
    for (unsigned i = 0; i < event_count; i++) close(events[i]);
    event_count = 0;
    kind = -1;
}

void server_connected(int socket) { connection = socket; }

void server_disconnected(void) {
    drop_events();
    if (error_event >= 0) close(error_event);
    error_event = -1;
    for (unsigned i = 0; i < range_count; i++)
        if (ranges[i].host) munmap(ranges[i].host, ranges[i].size);
    range_count = 0;
    if (twin >= 0) close(twin);
    twin = -1;
    device_reset();
}

/* MARK: Replies */

/* Answers as --bad says. Returns whether the connection goes on. */
static bool bad_reply(struct header *reply, const void *payload) {
    const char *bad = settings.bad;
    settings.bad = NULL;
    int some[MOST_FDS];
    for (unsigned i = 0; i < MOST_FDS; i++) some[i] = 2;
    if (!strcmp(bad, "silent")) return true;
    if (!strcmp(bad, "close")) return false;
    if (!strcmp(bad, "error")) {
        reply->flags |= ERROR;
        reply->error = EPERM;
        reply->size = sizeof *reply;
    } else if (!strcmp(bad, "odd-error")) {
        reply->flags |= ERROR;
        reply->error = 0xffffffff;
    } else if (!strcmp(bad, "id")) {
        reply->id ^= 1;
    } else if (!strcmp(bad, "command")) {
        reply->command ^= 1;
    } else if (!strcmp(bad, "type")) {
        reply->flags = 7;
    } else if (!strcmp(bad, "short")) {
        reply->size = sizeof *reply + 3;
    } else if (!strcmp(bad, "long")) {
        static const uint8_t nothing[4096];
        reply->size = sizeof *reply + sizeof nothing;
        return send_message(connection, reply, nothing, NULL, 0);
    } else if (!strcmp(bad, "huge") || !strcmp(bad, "tiny") || !strcmp(bad, "half")) {
        /* A size that the message does not have. */
        struct header lie = *reply;
        lie.size = !strcmp(bad, "huge") ? 0xfffffff0 : !strcmp(bad, "tiny") ? 5 : sizeof lie + 64;
        return write(connection, &lie, sizeof lie) == sizeof lie;
    } else if (!strcmp(bad, "fds")) {
        return send_message(connection, reply, payload, some, 3);
    } else if (!strcmp(bad, "many-fds")) {
        return send_message(connection, reply, payload, some, MOST_FDS);
    } else if (!strcmp(bad, "twice")) {
        return send_message(connection, reply, payload, NULL, 0) && send_message(connection, reply, payload, NULL, 0);
    }
    return send_message(connection, reply, payload, NULL, 0);
}

static bool reply(const void *payload, size_t size, const int *with, unsigned count) {
    if (header.flags & NO_REPLY) return true;
    struct header answer = {header.id, header.command, (uint32_t)(sizeof answer + size), REPLY, 0};
    if (settings.bad && settings.bad_command == header.command) return bad_reply(&answer, payload);
    return send_message(connection, &answer, payload, with, count);
}

/* The client must not send such a message. */
static bool refuse(int error, const char *why) {
    note("refused message %u: %s", header.command, why);
    struct header answer = {header.id, header.command, sizeof answer, REPLY | ERROR, (uint32_t)error};
    return (header.flags & NO_REPLY) || send_message(connection, &answer, NULL, NULL, 0);
}

/* MARK: Messages */

static bool negotiate(size_t size) {
    if (size < 6 || data[0] || data[1] || data[size - 1]) return refuse(EINVAL, "version");
    bool takes_twin = strstr((char *)data + 4, "\"twin_socket\":{\"supported\":true}") != NULL;
    int pair[2] = {-1, -1};
    char text[512] = {0};
    if (settings.twin && takes_twin && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return false;
    twin = pair[0];
    int length = snprintf(
        text + 4, sizeof text - 4, "{\"capabilities\":{\"max_msg_fds\":%u,\"max_data_xfer_size\":%u%s}}",
        settings.message_fds, 128, twin >= 0 ? ",\"twin_socket\":{\"supported\":true,\"fd_index\":0}" : "");
    if (settings.capabilities) length = snprintf(text + 4, sizeof text - 4, "%s", settings.capabilities);
    if (settings.region && !strcmp(settings.region, "version")) text[0] = 9;
    size_t total = 4 + (size_t)length + (settings.region && !strcmp(settings.region, "unended") ? 0 : 1);
    note("version%s", twin >= 0 ? " twin" : "");
    bool ok = reply(text, total, pair + 1, twin >= 0);
    if (pair[1] >= 0) close(pair[1]);
    return ok;
}

static bool map_dma(size_t size) {
    struct dma_map *map = (struct dma_map *)data;
    if (size != sizeof *map || map->argsz != sizeof *map || (map->flags & ~3u) || !(map->flags & 1) || fd_count > 1)
        return refuse(EINVAL, "DMA mapping");
    if (range_count == RANGES) return refuse(ENOSPC, "too many ranges");
    for (unsigned i = 0; i < range_count; i++)
        if (map->address < ranges[i].start + ranges[i].size && ranges[i].start < map->address + map->size)
            return refuse(EEXIST, "DMA mapping over another");
    struct range *range = &ranges[range_count];
    *range = (struct range){map->address, map->size, NULL, (map->flags & 2) != 0};
    if (fd_count && !settings.asks) {
        int access = PROT_READ | (range->writable ? PROT_WRITE : 0);
        range->host = mmap(NULL, map->size, access, MAP_SHARED, fds[0], (off_t)map->offset);
        if (range->host == MAP_FAILED) return refuse(errno, "descriptor of memory");
    }
    range_count++;
    note("dma_map address=%#lx size=%#lx %s%s", map->address, map->size, range->writable ? "rw" : "ro",
         fd_count ? " fd" : "");
    return reply(NULL, 0, NULL, 0);
}

static bool device_info(size_t size) {
    struct { uint32_t argsz, flags, regions, irqs; } info;
    if (size != sizeof info || *(uint32_t *)data < sizeof info) return refuse(EINVAL, "device info");
    info.argsz = sizeof info;
    info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
    info.regions = settings.region && !strcmp(settings.region, "few") ? 3 : REGIONS;
    info.irqs = IRQS;
    if (settings.region && !strcmp(settings.region, "no-pci")) info.flags = VFIO_DEVICE_FLAGS_PLATFORM;
    return reply(&info, sizeof info, NULL, 0);
}

static bool region_info(size_t size) {
    struct {
        struct vfio_region_info info;
        struct { struct vfio_info_cap_header header; uint32_t count, reserved; } sparse;
        struct vfio_region_sparse_mmap_area area;
    } answer = {0};
    struct vfio_region_info *info = &answer.info;
    if (size < sizeof *info) return refuse(EINVAL, "region info");
    memcpy(info, data, sizeof *info);
    uint32_t room = info->argsz;
    const char *what = settings.region ? settings.region : "";
    if (room < sizeof *info || room != size || info->index >= REGIONS) return refuse(EINVAL, "region info");
    *info = (struct vfio_region_info){.argsz = sizeof *info, .index = info->index};
    size_t length = sizeof *info;
    const uint32_t both = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    int file = -1;
    if (info->index == VFIO_PCI_CONFIG_REGION_INDEX) {
        info->flags = both;
        info->size = strcmp(what, "config") ? CONFIG_SIZE : 64;
    } else if (info->index == VFIO_PCI_ROM_REGION_INDEX) {
        info->flags = VFIO_REGION_INFO_FLAG_READ;
        info->size = ROM_SIZE;
    } else if (info->index == 0 || info->index == 2) {
        info->flags = both;
        info->size = BAR_SIZE;
    }
    if (info->index == 2) {
        info->flags |= VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
        info->argsz = sizeof answer;
        answer.sparse.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
        answer.sparse.header.version = 1;
        answer.sparse.count = 1;
        answer.area = (struct vfio_region_sparse_mmap_area){MAPPED_FROM, MAPPED_SIZE};
        if (!strcmp(what, "areas")) answer.sparse.count = 0xffffffff;
        if (!strcmp(what, "outside")) answer.area.offset = 0xffffffffffff0000;
        if (!strcmp(what, "size")) info->size = 1ul << 63;
        if (!strcmp(what, "odd")) info->size = 12345;
        if (!strcmp(what, "offset")) info->offset = 1ul << 63;
        if (!strcmp(what, "index")) info->index = 4;
        if (!strcmp(what, "loop")) answer.sparse.header.id = 77, answer.sparse.header.next = sizeof *info;
        if (!strcmp(what, "short")) (void)!ftruncate(bar2_file, 0x4000);
        if (room >= sizeof answer) {
            info->cap_offset = sizeof *info;
            length = sizeof answer;
            file = bar2_file;
        }
    }
    int pipe_ends[2] = {-1, -1};
    if (file >= 0 && !strcmp(what, "pipe") && !pipe(pipe_ends)) file = pipe_ends[0];
    bool ok = reply(&answer, length, &file, file >= 0);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    return ok;
}

static unsigned irq_count(unsigned index) {
    if (index == INTX || index == VFIO_PCI_ERR_IRQ_INDEX) return 1;
    return index <= MSIX ? VECTORS : 0;
}

static bool irq_info(size_t size) {
    struct vfio_irq_info info;
    if (size != sizeof info) return refuse(EINVAL, "irq info");
    memcpy(&info, data, sizeof info);
    if (info.argsz < sizeof info || info.index >= IRQS) return refuse(EINVAL, "irq info");
    info.flags = VFIO_IRQ_INFO_EVENTFD;
    info.count = irq_count(info.index);
    if (settings.region && !strcmp(settings.region, "irqs")) info.count = 0xffffffff;
    return reply(&info, sizeof info, NULL, 0);
}

static bool set_error(const struct vfio_irq_set *set) {
    if (set->flags != (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER) || set->count != 1 || fd_count != 1
        || error_event >= 0)
        return refuse(EINVAL, "set_irqs of errors");
    error_event = dup(fds[0]);
    note("set_irqs index=%u start=0 count=1", set->index);
    return reply(NULL, 0, NULL, 0);
}

void server_error(void) {
    uint64_t one = 1;
    note("error %s", error_event >= 0 && write(error_event, &one, sizeof one) == sizeof one ? "told" : "untold");
}

static bool set_irqs(size_t size) {
    struct vfio_irq_set set;
    if (size != sizeof set) return refuse(EINVAL, "size of set_irqs");
    memcpy(&set, data, sizeof set);
    unsigned most = set.index < IRQS ? irq_count(set.index) : 0;
    if (set.argsz != sizeof set || set.start > most || set.count > most - set.start)
        return refuse(EINVAL, "no such interrupts");
    if (set.index == VFIO_PCI_ERR_IRQ_INDEX) return set_error(&set);
    if (set.flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK)) {
        if (set.index != INTX || set.count != 1) return refuse(EINVAL, "unmask");
    } else if (set.flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER) && !set.count) {
        if (kind != (int)set.index) return refuse(EINVAL, "not in use");
        drop_events();
        note("set_irqs index=%u off", set.index);
    } else if (set.flags == (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER) && set.count) {
        if (fd_count != set.count || fd_count > settings.message_fds || set.start != event_count
            || (kind >= 0 && kind != (int)set.index))
            return refuse(EINVAL, "descriptors of interrupts");
        for (unsigned i = 0; i < fd_count; i++) events[event_count++] = dup(fds[i]);
        kind = (int)set.index;
        note("set_irqs index=%u start=%u count=%u", set.index, set.start, set.count);
    } else {
        return refuse(EINVAL, "flags of set_irqs");
    }
    return reply(NULL, 0, NULL, 0);
}

static bool access_region(size_t size, bool writing) {
    struct access *access = (struct access *)data;
    if (size < sizeof *access || access->count > 128 || size != sizeof *access + (writing ? access->count : 0))
        return refuse(EINVAL, "region access");
    if (access->region == VFIO_PCI_CONFIG_REGION_INDEX) {
        if (access->offset > CONFIG_SIZE || access->count > CONFIG_SIZE - access->offset)
            return refuse(EINVAL, "configuration space access");
        uint8_t *at = config + access->offset;
        memcpy(writing ? at : access->data, writing ? access->data : at, access->count);
    } else if (access->region == VFIO_PCI_ROM_REGION_INDEX) {
        if (writing || access->offset > ROM_SIZE || access->count > ROM_SIZE - access->offset)
            return refuse(EINVAL, "ROM access");
        memcpy(access->data, rom + access->offset, access->count);
    } else if (!device_access(access->region, access->offset, access->data, access->count, writing)) {
        return refuse(EINVAL, "region access outside of it");
    }
    return reply(access, sizeof *access + (writing ? 0 : access->count), NULL, 0);
}

bool server_message(void) {
    if (!receive_message(connection, &header, data, sizeof data, fds, &fd_count)) return false;
    size_t size = header.size - sizeof header;
    bool goes_on = true;
    if ((header.flags & 0xf) == REPLY) {
        note("refused reply %u that nobody waits for", header.command);
    } else if (fd_count > settings.message_fds && header.command != VERSION) {
        goes_on = refuse(EINVAL, "too many descriptors");
    } else {
        switch (header.command) {
        case VERSION: goes_on = negotiate(size); break;
        case DMA_MAP: goes_on = map_dma(size); break;
        case GET_INFO: goes_on = device_info(size); break;
        case GET_REGION_INFO: goes_on = region_info(size); break;
        case GET_IRQ_INFO: goes_on = irq_info(size); break;
        case SET_IRQS: goes_on = set_irqs(size); break;
        case REGION_READ: goes_on = access_region(size, false); break;
        case REGION_WRITE: goes_on = access_region(size, true); break;
        case DEVICE_RESET:
            device_reset();
            put16(4, 0);
            note("reset");
            goes_on = reply(NULL, 0, NULL, 0);
            break;
        default: goes_on = refuse(ENOTSUP, "unknown");
        }
    }
    for (unsigned i = 0; i < fd_count; i++) close(fds[i]);
    return goes_on;
}

/* MARK: What the server does by itself */

/* Asks the client, whose answer comes on the same socket. Returns the error
 * of the answer, or -1. */
static int ask(uint16_t command, const void *payload, size_t size, const int *with, unsigned count) {
    int socket = twin >= 0 ? twin : connection;
    struct header question = {own_id++, command, (uint32_t)(sizeof question + size), 0, 0}, answer;
    static uint8_t room[ROOM];
    int extra[MOST_FDS];
    unsigned extra_count;
    if (!send_message(socket, &question, payload, with, count)) return -1;
    if (!receive_message(socket, &answer, room, sizeof room, extra, &extra_count)) return -1;
    if (answer.id != question.id || answer.command != command || (answer.flags & 0xf) != REPLY) {
        note("refused answer to a question");
        return -1;
    }
    return answer.flags & ERROR ? (int)answer.error : 0;
}

bool dma_write(uint64_t address, const void *bytes, size_t size) {
    for (unsigned i = 0; i < range_count; i++) {
        struct range *range = &ranges[i];
        if (address < range->start || address - range->start > range->size - size || !range->writable) continue;
        if (range->host) {
            /* In one piece: the guest looks at it all the while. */
            *(volatile uint64_t *)(range->host + (address - range->start)) = *(const uint64_t *)bytes;
            return true;
        }
        struct { struct dma_access head; uint8_t data[64]; } message = {{address, size}, {0}};
        memcpy(message.data, bytes, size);
        return ask(DMA_WRITE, &message, sizeof message.head + size, NULL, 0) == 0;
    }
    note("fault address=%#lx", address);
    return false;
}

int interrupt_kind(void) { return event_count ? kind : -1; }

void interrupt(unsigned vector) {
    uint64_t one = 1;
    if (vector < event_count) (void)!write(events[vector], &one, sizeof one);
}

/* Asks as --request says, and notes the answer. */
static void ask_nonsense(void) {
    const char *what = settings.request;
    struct { struct dma_access head; uint8_t data[64]; } message = {{0x80000000, 8}, {0}};
    size_t size = sizeof message.head;
    uint16_t command = DMA_READ;
    int with = 2;
    has_asked = true;
    if (!strcmp(what, "outside")) message.head.address = 0x10000000;
    if (!strcmp(what, "over-the-end")) message.head.address = 0x80000000 + 0x1000000 - 4;
    if (!strcmp(what, "wrapping")) message.head = (struct dma_access){~0ul - 3, 8};
    if (!strcmp(what, "huge")) message.head.count = ~0ul;
    if (!strcmp(what, "nothing")) message.head.count = 0;
    if (!strcmp(what, "write-outside")) message.head.address = 0x10000000, command = DMA_WRITE, size += 8;
    if (!strcmp(what, "write-less")) command = DMA_WRITE, size += 4;
    if (!strcmp(what, "write-more")) command = DMA_WRITE, size += 16;
    if (!strcmp(what, "half")) size = 3;
    if (!strcmp(what, "unknown")) command = 99;
    if (!strcmp(what, "shrink")) {
        (void)!ftruncate(bar2_file, 0);
        note("shrunk");
        return;
    }
    if (!strcmp(what, "reply")) {
        struct header stray = {77, REGION_READ, sizeof stray, REPLY, 0};
        (void)send_message(connection, &stray, NULL, NULL, 0);
        return;
    }
    if (!strcmp(what, "stall")) {
        /* The beginning of a message. */
        (void)!write(connection, "\1\0\14\0", 4);
        return;
    }
    if (!strcmp(what, "end")) {
        shutdown(connection, SHUT_RDWR);
        return;
    }
    note("asked %s: %d", what, ask(command, &message, size, &with, !strcmp(what, "fds")));
}

void server_tick(void) {
    /* Without a twin socket both sides must not ask at once: the guest has
     * done its part when the device has counted for a while. */
    if (settings.request && !has_asked && device_dma_count() > 50) ask_nonsense();
    else device_tick((config[4] & 4) != 0);
}
