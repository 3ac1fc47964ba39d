/* A simulator of the kernel's VFIO interface with one PCI device, for a VMM
 * that knows nothing of it: its system calls are answered here, from another
 * process (seccomp user notification), with the kernel's checks and errors. */
#ifndef VFIO_SIMULATOR_H
#define VFIO_SIMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What the options make different. */
struct settings {
    const char *device;   /* name of the device */
    int group;            /* its IOMMU group */
    bool lacks_update_vaddr, lacks_unmap_all, lacks_type1, lacks_viable, lacks_pci, lacks_reset, lacks_mmap;
    /* A request that is refused: the Nth time, or always for 0. */
    struct refusal { const char *name; int error; unsigned nth, seen; } refusals[8];
    size_t refusal_count;
};
extern struct settings settings;

/* Writes a line to the log: PID TEXT. */
void note(pid_t pid, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Notes that a request is refused, and returns -error. */
int refuse(pid_t pid, const char *name, int error, const char *why);
/* The error with which the options refuse a request, or 0. */
int refused(const char *name);

/* Memory of the process; 0, or -1 when it is not there. */
int fetch(pid_t pid, uint64_t address, void *data, size_t size);
int store(pid_t pid, uint64_t address, const void *data, size_t size);
/* A copy of a process' descriptor, or -1. */
int take_fd(pid_t pid, int fd);

/* What an open or ioctl answers: a result (negative for an errno), or a
 * descriptor to be installed. */
struct answer { long result; int fd; };

int container_fd(void);
int group_fd(void);
int device_fd(void);
void iommu_start(void);
void device_start(void);

struct answer container_ioctl(pid_t pid, unsigned request, uint64_t argument);
struct answer group_ioctl(pid_t pid, unsigned request, uint64_t argument);
struct answer device_ioctl(pid_t pid, unsigned request, uint64_t argument);

/* Guest memory at an address of the bus, or NULL where nothing is mapped. */
void *iommu_translate(uint64_t iova, size_t size, bool writing);
bool iommu_is_set(void);

/* Lets the device work; called again and again. */
void device_tick(void);
uint64_t device_dma_count(void);
void device_report(void);

#endif
