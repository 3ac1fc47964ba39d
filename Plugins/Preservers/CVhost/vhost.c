#include "cvhost.h"

#include <baton-module.h>
#include <errno.h>
#include <linux/vhost.h>
#include <stdlib.h>
#include <sys/ioctl.h>

/* Opened anew at each update. */
BATON_NEEDS_PATHS("/dev/vhost-vsock\0");

static int request(int fd, unsigned long number, void *argument) {
    int result;
    do result = ioctl(fd, number, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? errno : 0;
}

int cvhost_features(int fd, uint64_t *features) {
    __u64 found = 0;
    int error = request(fd, VHOST_GET_FEATURES, &found);
    *features = found;
    return error;
}

int cvhost_own(int fd) { return request(fd, VHOST_SET_OWNER, NULL); }

int cvhost_use_features(int fd, uint64_t features) {
    __u64 used = features;
    return request(fd, VHOST_SET_FEATURES, &used);
}

int cvhost_use_memory(int fd, const struct cvhost_range *ranges, size_t count) {
    struct vhost_memory *memory = calloc(1, sizeof *memory + count * sizeof memory->regions[0]);
    if (!memory) return ENOMEM;
    memory->nregions = (__u32)count;
    for (size_t i = 0; i < count; i++) {
        memory->regions[i] = (struct vhost_memory_region){
            .guest_phys_addr = ranges[i].start, .memory_size = ranges[i].size,
            .userspace_addr = (uintptr_t)ranges[i].host};
    }
    int error = request(fd, VHOST_SET_MEM_TABLE, memory);
    free(memory);
    return error;
}

int cvhost_use_queue(int fd, const struct cvhost_queue *queue) {
    struct vhost_vring_state size = {.index = queue->index, .num = queue->size};
    struct vhost_vring_state base = {.index = queue->index, .num = queue->base};
    struct vhost_vring_addr rings = {
        .index = queue->index, .desc_user_addr = (uintptr_t)queue->descriptors,
        .avail_user_addr = (uintptr_t)queue->available, .used_user_addr = (uintptr_t)queue->used};
    struct vhost_vring_file kick = {.index = queue->index, .fd = queue->kick};
    struct vhost_vring_file call = {.index = queue->index, .fd = queue->call};
    struct vhost_vring_file error = {.index = queue->index, .fd = queue->error};
    int result = request(fd, VHOST_SET_VRING_NUM, &size);
    if (!result) result = request(fd, VHOST_SET_VRING_BASE, &base);
    if (!result) result = request(fd, VHOST_SET_VRING_ADDR, &rings);
    if (!result) result = request(fd, VHOST_SET_VRING_ERR, &error);
    if (!result) result = request(fd, VHOST_SET_VRING_CALL, &call);
    if (!result) result = request(fd, VHOST_SET_VRING_KICK, &kick);
    return result;
}

int cvhost_base(int fd, unsigned index, unsigned *base) {
    struct vhost_vring_state state = {.index = index};
    int error = request(fd, VHOST_GET_VRING_BASE, &state);
    *base = state.num;
    return error;
}

int cvhost_vsock_address(int fd, uint64_t cid) {
    __u64 address = cid;
    return request(fd, VHOST_VSOCK_SET_GUEST_CID, &address);
}

int cvhost_vsock_run(int fd, int runs) { return request(fd, VHOST_VSOCK_SET_RUNNING, &runs); }
