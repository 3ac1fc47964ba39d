/* A simulator of the kernel's /dev/vhost-vsock (drivers/vhost/vhost.c and vsock.c of Linux 7.2), for a VMM that knows
 * nothing of it: its system calls are answered here, from another process (seccomp user notification), with the kernel's
 * checks and errors. What a guest sends comes back to it. */
#ifndef VHOST_SIMULATOR_H
#define VHOST_SIMULATOR_H

#include <linux/vhost.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "caller.h"
#include "note.h"

enum { DEVICES = 16, REGIONS = 64, QUEUES = 2, TO_GUEST = 0, FROM_GUEST = 1 };

struct queue {
    unsigned size;
    uint16_t base, used_index;
    uint64_t descriptors, available, used;
    /* Copies of the VMM's; -1 for none. */
    int kick, call, error;
};

struct device {
    /* Our end of what the VMM has, which ends when nobody has the other one; -1: there is no such device. */
    int peer;
    dev_t device;
    ino_t inode;
    /* Whose memory it is of; 0 for nobody's. */
    pid_t owner;
    uint64_t features, address;
    bool runs, is_broken;
    struct vhost_memory_region regions[REGIONS];
    unsigned region_count;
    struct queue queues[QUEUES];
};
extern struct device devices[DEVICES];

/* What the options make different. */
struct settings {
    bool lacks_seqpacket, lacks_version1;
    /* An address that another VM has; 0 for none. */
    uint64_t taken;
};
extern struct settings settings;

/* The error with which the options refuse a request, or 0. */
int refused(const char *name);

/* Answers an ioctl: a result, or an errno below 0. */
long device_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument);
/* Has packets come back, as far as there are some, and buffers for them. */
void device_work(struct device *device);
/* Forgets a device that nobody has open any more. */
void device_end(struct device *device);

#endif
