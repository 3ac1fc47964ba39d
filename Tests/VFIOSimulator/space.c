/* Address spaces of the IOMMU: what is mapped where, and the memory behind it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "simulator.h"

void *space_translate(struct space *space, uint64_t iova, size_t size, bool writing) {
    for (size_t i = 0; i < space->count; i++) {
        struct mapping *m = &space->mappings[i];
        if (iova < m->iova || size > m->size || iova - m->iova > m->size - size) continue;
        return (writing && !m->writable) || !m->host ? NULL : m->host + (iova - m->iova);
    }
    return NULL;
}

bool find_area(pid_t pid, uint64_t address, uint64_t size, struct area *found) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    char line[4352];
    uint64_t covered = address;
    while (covered < address + size && fgets(line, sizeof line, file)) {
        unsigned long start, end, offset, inode;
        unsigned major, minor;
        char access[8];
        const char *format = "%lx-%lx %7s %lx %x:%x %lu";
        if (sscanf(line, format, &start, &end, access, &offset, &major, &minor, &inode) != 7) break;
        if (end <= covered) continue;
        if (start > covered) break;
        bool writable = access[1] == 'w';
        if (covered == address) {
            *found = (struct area){writable, makedev(major, minor), inode, offset + (address - start)};
        } else if (found->inode != inode || found->writable != writable) {
            break;
        }
        covered = end;
    }
    fclose(file);
    return covered >= address + size;
}

static uint8_t *map_fd(int fd, uint64_t offset, uint64_t size, bool writable) {
    void *mapped = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)offset);
    return mapped == MAP_FAILED ? NULL : mapped;
}

/* Maps the file of an area, which one of the process' descriptors has open. */
static uint8_t *map_area(pid_t pid, const struct area *area, uint64_t size, bool writable) {
    char directory[64];
    snprintf(directory, sizeof directory, "/proc/%d/fd", pid);
    DIR *list = opendir(directory);
    uint8_t *host = NULL;
    for (struct dirent *entry; list && !host && (entry = readdir(list));) {
        char path[400];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (stat(path, &status) || status.st_ino != area->inode || status.st_dev != area->device) continue;
        int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        if (fd < 0) continue;
        host = map_fd(fd, area->offset, size, writable);
        close(fd);
    }
    if (list) closedir(list);
    return host;
}

/* Addresses that the IOMMU keeps for messages of interrupts: those of x86, iommu_get_resv_regions. */
enum { MSI_START = 0xfee00000u, MSI_END = 0xfef00000u };

static int check_free(struct space *space, pid_t pid, const char *name, uint64_t iova, uint64_t size) {
    if (!size || (size | iova) & 4095) return refuse(pid, name, EINVAL, "not whole pages");
    if (iova + size - 1 < iova) return refuse(pid, name, EINVAL, "wraps");
    if (iova < MSI_END && MSI_START < iova + size) return refuse(pid, name, EINVAL, "addresses of interrupts");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    for (size_t i = 0; i < space->count; i++) {
        struct mapping *m = &space->mappings[i];
        if (iova < m->iova + m->size && m->iova < iova + size) return refuse(pid, name, EEXIST, "mapped already");
    }
    return space->count == MAX_MAPPINGS ? refuse(pid, name, ENOSPC, "too many") : 0;
}

int space_map(struct space *space, pid_t pid, const char *name, uint64_t iova, uint64_t size, uint64_t vaddr,
              bool writable) {
    int error = vaddr & 4095 ? refuse(pid, name, EINVAL, "not whole pages") : check_free(space, pid, name, iova, size);
    if (error) return error;
    struct area area;
    if (!find_area(pid, vaddr, size, &area)) return refuse(pid, name, EFAULT, "no memory");
    if (writable && !area.writable) return refuse(pid, name, EFAULT, "memory that the process may not write");
    uint8_t *host = area.inode ? map_area(pid, &area, size, writable) : NULL;
    space->mappings[space->count++] =
        (struct mapping){iova, size, writable, true, false, area.device, area.inode, area.offset, host};
    return 0;
}

/* Only files of memory can be pinned: memfd_pin_folios, mm/gup.c. */
static bool is_memory(int fd) { return fcntl(fd, F_GET_SEALS) >= 0; }

int space_map_file(struct space *space, pid_t pid, const char *name, uint64_t iova, uint64_t size, int fd,
                   uint64_t offset, bool writable) {
    int error = offset & 4095 ? refuse(pid, name, EINVAL, "not whole pages") : check_free(space, pid, name, iova, size);
    if (error) return error;
    int copy = caller_take_fd(pid, fd);
    if (copy < 0) return refuse(pid, name, EBADF, "no file");
    struct stat status;
    uint8_t *host = NULL;
    if (!is_memory(copy) || fstat(copy, &status)) {
        error = refuse(pid, name, EINVAL, "a file that is not of memory");
    } else if (offset > (uint64_t)status.st_size || size > (uint64_t)status.st_size - offset) {
        error = refuse(pid, name, EINVAL, "beyond the end of the file");
    } else if (!(host = map_fd(copy, offset, size, writable))) {
        error = refuse(pid, name, EFAULT, "cannot be mapped");
    } else {
        space->mappings[space->count++] =
            (struct mapping){iova, size, writable, false, true, status.st_dev, status.st_ino, offset, host};
    }
    close(copy);
    return error;
}

void space_clear(struct space *space) {
    for (size_t i = 0; i < space->count; i++) {
        if (space->mappings[i].host) munmap(space->mappings[i].host, space->mappings[i].size);
    }
    space->count = 0;
}
