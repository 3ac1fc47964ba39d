/* A simulator of the kernel's VFIO and iommufd interfaces with PCI devices, for
 * a VMM that knows nothing of it: its system calls are answered here, from
 * another process (seccomp user notification), with the kernel's checks and
 * errors. */
#ifndef VFIO_SIMULATOR_H
#define VFIO_SIMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "caller.h"
#include "note.h"

enum { MAX_DEVICES = 8, MAX_MAPPINGS = 64, VECTORS = 4, CDEV_MAJOR = 511 };

/* What the options make different. */
struct settings {
    bool lacks_update_vaddr, lacks_unmap_all, lacks_type1, lacks_viable, lacks_pci, lacks_reset, lacks_mmap;
    bool lacks_hot_reset, lacks_flr, lacks_express, lacks_rom, lacks_cdev, lacks_map_file, lacks_change_process;
    bool lacks_request;
    /* Hostile answers. */
    bool lies_rom_size, lies_ext_loop, lies_ext_wild, lies_ari_first, lies_region, lies_config_size, lies_msix_place;
    bool lies_legacy_endpoint, lies_hot_reset_count;
    /* A request that is refused: the Nth time, or always for 0. */
    struct refusal { const char *name; int error; unsigned nth, seen; } refusals[8];
    size_t refusal_count;
};
extern struct settings settings;

/* Notes that a request is refused, and returns -error. */
int refuse(pid_t pid, const char *name, int error, const char *why);
/* The error with which the options refuse a request, or 0. */
int refused(const char *name);

/* What an open or ioctl answers: a result (negative for an errno), or a
 * descriptor to be installed. */
struct answer { long result; int fd; };

/* MARK: Address spaces (space.c) */

struct mapping {
    uint64_t iova, size;
    bool writable, has_vaddr, by_file;
    /* The file behind it and the place in that; `host` is NULL without one. */
    dev_t device;
    ino_t inode;
    uint64_t offset;
    uint8_t *host;
};
struct space {
    struct mapping mappings[MAX_MAPPINGS];
    size_t count;
};
/* Memory of a process as /proc/PID/maps shows it. */
struct area { bool writable; dev_t device; ino_t inode; uint64_t offset; };

bool find_area(pid_t pid, uint64_t address, uint64_t size, struct area *found);
/* Maps memory of the process, or a file; NULL when it is not there. Refuses
 * what is mapped already, as `name`. Returns 0 or -errno. */
int space_map(struct space *space, pid_t pid, const char *name, uint64_t iova, uint64_t size, uint64_t vaddr,
              bool writable);
int space_map_file(struct space *space, pid_t pid, const char *name, uint64_t iova, uint64_t size, int fd,
                   uint64_t offset, bool writable);
void space_clear(struct space *space);
/* Guest memory at an address of the bus, or NULL where nothing is mapped. */
void *space_translate(struct space *space, uint64_t iova, size_t size, bool writing);

/* MARK: Files that were handed out (files.c) */

enum kind { CONTAINER, GROUP, DEVICE, IOMMUFD_FILE };
/* Makes the file of an object. */
int make_file(enum kind kind, void *object);
/* The object that a process' descriptor, or one of ours, is open on; NULL when
 * it is none of that kind. */
void *object_of(pid_t pid, int fd, enum kind kind);
bool identify(pid_t pid, int fd, enum kind *kind, void **object);

/* System calls that name files; false when they are none of ours. */
struct seccomp_notif;
bool files_answer(const struct seccomp_notif *call, struct answer *answer);
int files_start(void);
void files_end(void);

/* MARK: Objects */

struct container {
    int fd;
    unsigned number;
    bool iommu_set;
    unsigned groups;
    struct space space;
};
struct group {
    int fd, number;
    bool opened;
    struct container *container;
};
/* An address space of an iommufd, or a device bound to it. */
struct object { uint32_t id; struct space *space; struct device *device; };
struct iommufd {
    int fd;
    unsigned number;
    struct object objects[32];
    uint32_t next_id;
    /* The process and program that pinned memory is accounted to. */
    uint64_t owner;
};
struct device {
    const char *name;
    unsigned index;
    struct group *group;
    /* The number of its own file, and what it was bound to. */
    int cdev;
    struct iommufd *iommufd;
    uint32_t id;
    struct object *ioas;
    int file;
    uint8_t *bar0, *config;
    int active; /* index of the interrupts in use */
    int events[VECTORS];
    unsigned event_count;
    bool intx_masked;
    int notices[2]; /* eventfds of errors and requests, or -1 */
    uint64_t dma_count, fault_count, raised;
};
extern struct device devices[MAX_DEVICES];
extern size_t device_count;
extern struct group groups[MAX_DEVICES];
extern size_t group_count;

struct group *group_number(int number);
struct answer open_container(pid_t pid);
struct answer open_group(pid_t pid, struct group *group);
struct answer open_iommufd(pid_t pid);
struct answer open_cdev(pid_t pid, struct device *device);
struct answer container_ioctl(struct container *container, pid_t pid, unsigned request, uint64_t argument);
struct answer group_ioctl(struct group *group, pid_t pid, unsigned request, uint64_t argument);
struct answer iommufd_ioctl(struct iommufd *iommufd, pid_t pid, unsigned request, uint64_t argument);
struct answer device_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument);

/* VFIO_DEVICE_BIND_IOMMUFD and the like. */
struct answer bind_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument);
/* VFIO_DEVICE_RESET, and that of all functions of a slot. */
struct answer reset_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument);
/* Puts registers back, as any reset does. */
void device_reset(struct device *device);

void device_start(struct device *device);
void config_start(struct device *device);
/* How large the configuration space is said to be. */
uint64_t config_size(void);
void rom_start(uint8_t *rom, size_t size, unsigned index);
/* Where a device's memory is, or NULL when it has none. */
struct space *device_space(struct device *device);
/* Lets a device work; called again and again. */
void device_tick(struct device *device);
/* Tells the VMM of an error of the device (VFIO_PCI_ERR_IRQ_INDEX), or that the
 * host wants it back (VFIO_PCI_REQ_IRQ_INDEX). */
void device_notice(struct device *device, unsigned index);
/* The counts of all devices, as "12,34". */
const char *dma_counts(void);
/* " device=NAME" where there are several. */
const char *label(const struct device *device);

#endif
