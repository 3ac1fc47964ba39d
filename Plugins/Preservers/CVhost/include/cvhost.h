/* The kernel as the back end of a virtio device (linux/vhost.h). Each function returns 0, or an errno value. FD is an
 * open device of vhost's; all but cvhost_features and cvhost_own want it to be of this process' memory. */
#ifndef CVHOST_H
#define CVHOST_H

#include <stddef.h>
#include <stdint.h>

/* Stores what the kernel's part of the device has: virtio's features. */
int cvhost_features(int fd, uint64_t *features);

/* The device is of this process' memory from here on, for as long as it is open: the kernel starts a thread for it in this
 * process, which an exec ends. */
int cvhost_own(int fd);

int cvhost_use_features(int fd, uint64_t features);

/* A range of guest RAM: SIZE bytes from the guest-physical address START on are at HOST. */
struct cvhost_range {
    uint64_t start, size;
    const void *host;
};
int cvhost_use_memory(int fd, const struct cvhost_range *ranges, size_t count);

/* A queue: its rings in this process' memory, the available ring's index to go on at, and the eventfds. */
struct cvhost_queue {
    unsigned index, size, base;
    const void *descriptors, *available, *used;
    int kick, call, error;
};
int cvhost_use_queue(int fd, const struct cvhost_queue *queue);

/* Stores the available ring's index that a queue which does not run goes on at. */
int cvhost_base(int fd, unsigned index, unsigned *base);

/* The guest's address; one device has it at a time. */
int cvhost_vsock_address(int fd, uint64_t cid);

/* Starts the queues, or stops them: nothing is in hand, and nothing looks at memory, when this returns. */
int cvhost_vsock_run(int fd, int runs);

#endif
