/* The devices: what a VMM asks of one, and its two queues of packets. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "simulator.h"

struct device devices[DEVICES];

/* MARK: Requests */

static uint64_t offered(void) {
    uint64_t features = 1 << 24 | 1 << 26 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
    if (!settings.lacks_seqpacket) features |= 1 << 1;
    if (!settings.lacks_version1) features |= 1ull << VIRTIO_F_VERSION_1;
    return features;
}

static long take_address(struct device *device, pid_t pid, uint64_t address) {
    int error = refused("address");
    if (error) return -error;
    if (address <= 2 || address >= UINT32_MAX) return -EINVAL;
    if (address == settings.taken) return -EADDRINUSE;
    for (size_t i = 0; i < DEVICES; i++) {
        if (devices[i].peer >= 0 && &devices[i] != device && devices[i].address == address) return -EADDRINUSE;
    }
    device->address = address;
    note(pid, "address %llu", (unsigned long long)address);
    return 0;
}

static long set_memory(struct device *device, pid_t pid, uint64_t argument) {
    struct vhost_memory head;
    if (caller_fetch(pid, argument, &head, sizeof head)) return -EFAULT;
    if (head.nregions > REGIONS) return -E2BIG;
    size_t size = head.nregions * sizeof device->regions[0];
    if (caller_fetch(pid, argument + sizeof head, device->regions, size)) return -EFAULT;
    device->region_count = head.nregions;
    return 0;
}

/* Takes a copy of a descriptor for a queue. */
static long set_file(pid_t pid, int *place, int fd) {
    int copy = fd >= 0 ? caller_take_fd(pid, fd) : -1;
    if (fd >= 0 && copy < 0) return -EBADF;
    if (*place >= 0) close(*place);
    *place = copy;
    return 0;
}

/* Whether the kernel could use the rings: it writes a used ring's flags. */
static bool has_rings(const struct device *device, const struct queue *queue) {
    uint8_t bytes[16];
    uint16_t flags;
    return queue->size && !caller_fetch(device->owner, queue->descriptors, bytes, sizeof bytes)
        && !caller_fetch(device->owner, queue->available, bytes, 4)
        && !caller_fetch(device->owner, queue->used, &flags, sizeof flags)
        && !caller_store(device->owner, queue->used, &flags, sizeof flags);
}

static long set_running(struct device *device, pid_t pid, int runs) {
    int error = runs ? refused("run") : 0;
    if (error) return -error;
    if (runs == device->runs) return 0;
    for (size_t i = 0; i < QUEUES && runs; i++) {
        struct queue *queue = &device->queues[i];
        if (!has_rings(device, queue)) return -EFAULT;
        caller_fetch(device->owner, queue->used + 2, &queue->used_index, sizeof queue->used_index);
    }
    device->runs = runs;
    device->is_broken = false;
    note(pid, "run %d", runs);
    if (runs) device_work(device);
    return 0;
}

static long queue_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument) {
    union { unsigned index; struct vhost_vring_state state; struct vhost_vring_addr rings; struct vhost_vring_file file; } a;
    memset(&a, 0, sizeof a);
    if (caller_fetch(pid, argument, &a, _IOC_SIZE(request))) return -EFAULT;
    if (a.index >= QUEUES) return -ENOBUFS;
    struct queue *queue = &device->queues[a.index];
    switch (request) {
    case VHOST_SET_VRING_NUM:
        if (device->runs) return -EBUSY;
        if (!a.state.num || a.state.num > 0xffff || a.state.num & (a.state.num - 1)) return -EINVAL;
        queue->size = a.state.num;
        return 0;
    case VHOST_SET_VRING_BASE:
        if (device->runs) return -EBUSY;
        if (a.state.num > 0xffff) return -EINVAL;
        queue->base = (uint16_t)a.state.num;
        return 0;
    case VHOST_GET_VRING_BASE:
        a.state.num = queue->base;
        return caller_store(pid, argument, &a.state, sizeof a.state) ? -EFAULT : 0;
    case VHOST_SET_VRING_ADDR:
        if (a.rings.flags || a.rings.avail_user_addr & 1 || a.rings.used_user_addr & 3) return -EINVAL;
        queue->descriptors = a.rings.desc_user_addr;
        queue->available = a.rings.avail_user_addr;
        queue->used = a.rings.used_user_addr;
        return 0;
    case VHOST_SET_VRING_KICK: return set_file(pid, &queue->kick, a.file.fd);
    case VHOST_SET_VRING_CALL: return set_file(pid, &queue->call, a.file.fd);
    case VHOST_SET_VRING_ERR: return set_file(pid, &queue->error, a.file.fd);
    default: return -ENOTTY;
    }
}

long device_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument) {
    uint64_t number = 0;
    int word = 0, error;
    switch (request) {
    case VHOST_GET_FEATURES:
        number = offered();
        return caller_store(pid, argument, &number, sizeof number) ? -EFAULT : 0;
    case VHOST_SET_FEATURES:
        if (caller_fetch(pid, argument, &number, sizeof number)) return -EFAULT;
        if (number & ~offered()) return -EOPNOTSUPP;
        device->features = number;
        return 0;
    case VHOST_SET_OWNER:
        if ((error = refused("own"))) return -error;
        if (device->owner) return -EBUSY;
        device->owner = pid;
        note(pid, "own");
        return 0;
    case VHOST_VSOCK_SET_GUEST_CID:
        if (caller_fetch(pid, argument, &number, sizeof number)) return -EFAULT;
        return take_address(device, pid, number);
    }
    /* Everything else is the owner's. */
    if (device->owner != pid) {
        note(pid, "refused: a request by another process than the owner %d", device->owner);
        return -EPERM;
    }
    switch (request) {
    case VHOST_VSOCK_SET_RUNNING:
        if (caller_fetch(pid, argument, &word, sizeof word)) return -EFAULT;
        return set_running(device, pid, word);
    case VHOST_SET_MEM_TABLE: return set_memory(device, pid, argument);
    default: return queue_ioctl(device, pid, request, argument);
    }
}

void device_end(struct device *device) {
    note(device->owner, "closed %llu", (unsigned long long)device->address);
    close(device->peer);
    for (size_t i = 0; i < QUEUES; i++) {
        int files[] = {device->queues[i].kick, device->queues[i].call, device->queues[i].error};
        for (size_t k = 0; k < sizeof files / sizeof *files; k++) if (files[k] >= 0) close(files[k]);
    }
    *device = (struct device){.peer = -1};
}

/* MARK: Queues */

/* Moves bytes between here and guest memory. */
static bool move(const struct device *device, uint64_t address, void *data, size_t size, bool to_guest) {
    for (unsigned i = 0; i < device->region_count; i++) {
        const struct vhost_memory_region *region = &device->regions[i];
        uint64_t offset = address - region->guest_phys_addr;
        if (offset >= region->memory_size || size > region->memory_size - offset) continue;
        uint64_t host = region->userspace_addr + offset;
        return !(to_guest ? caller_store(device->owner, host, data, size) : caller_fetch(device->owner, host, data, size));
    }
    return false;
}

/* - Returns: false when there is no buffer. */
static bool next(struct device *device, struct queue *queue, uint16_t *head, struct vring_desc *descriptor) {
    uint16_t available;
    if (caller_fetch(device->owner, queue->available + 2, &available, sizeof available)) return !(device->is_broken = true);
    if (available == queue->base) return false;
    uint64_t place = queue->available + 4 + 2 * (queue->base % queue->size);
    if (caller_fetch(device->owner, place, head, sizeof *head) || *head >= queue->size
        || caller_fetch(device->owner, queue->descriptors + 16 * *head, descriptor, sizeof *descriptor))
        return !(device->is_broken = true);
    return true;
}

static bool use(struct device *device, struct queue *queue, uint16_t head, uint32_t length) {
    struct vring_used_elem element = {.id = head, .len = length};
    uint64_t place = queue->used + 4 + 8 * (queue->used_index % queue->size);
    uint16_t index = (uint16_t)(queue->used_index + 1);
    if (caller_store(device->owner, place, &element, sizeof element)
        || caller_store(device->owner, queue->used + 2, &index, sizeof index))
        return false;
    queue->base++;
    queue->used_index = index;
    return true;
}

static bool echo(struct device *device) {
    struct queue *from = &device->queues[FROM_GUEST], *to = &device->queues[TO_GUEST];
    struct vring_desc packet, room;
    uint16_t head, target;
    static uint8_t bytes[65536];
    if (!next(device, from, &head, &packet) || !next(device, to, &target, &room)) return false;
    size_t size = packet.len < room.len ? packet.len : room.len;
    if (size > sizeof bytes) size = sizeof bytes;
    if (!move(device, packet.addr, bytes, size, false) || !move(device, room.addr, bytes, size, true)
        || !use(device, from, head, 0) || !use(device, to, target, (uint32_t)size))
        device->is_broken = true;
    return !device->is_broken;
}

static void signal_event(int fd) {
    uint64_t one = 1;
    if (fd >= 0) (void)!write(fd, &one, sizeof one);
}

void device_work(struct device *device) {
    if (!device->runs || device->is_broken) return;
    bool has_used = false;
    while (echo(device)) has_used = true;
    for (size_t i = 0; i < QUEUES; i++) {
        if (has_used) signal_event(device->queues[i].call);
        if (device->is_broken) signal_event(device->queues[i].error);
    }
    if (device->is_broken) note(device->owner, "broken queue");
}
