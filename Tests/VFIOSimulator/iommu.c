/* Container, group and DMA mappings: drivers/vfio/vfio_iommu_type1.c. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "simulator.h"

struct mapping {
    uint64_t iova, size;
    bool writable, has_vaddr;
    /* The file behind it and the place in that; `host` is NULL without one. */
    dev_t device;
    ino_t inode;
    uint64_t offset;
    uint8_t *host;
};

static struct mapping mappings[64];
static size_t mapping_count;
static int container = -1, group = -1;
static bool group_attached, iommu_set;

void iommu_start(void) {
    container = memfd_create("vfio-simulated-container", MFD_CLOEXEC);
    group = memfd_create("vfio-simulated-group", MFD_CLOEXEC);
}

int container_fd(void) { return container; }
int group_fd(void) { return group; }
bool iommu_is_set(void) { return iommu_set; }

void *iommu_translate(uint64_t iova, size_t size, bool writing) {
    for (size_t i = 0; i < mapping_count; i++) {
        struct mapping *m = &mappings[i];
        if (iova < m->iova || size > m->size || iova - m->iova > m->size - size) continue;
        return (writing && !m->writable) || !m->host ? NULL : m->host + (iova - m->iova);
    }
    return NULL;
}

/* Memory of the process as /proc/PID/maps shows it. */
struct area { bool writable; dev_t device; ino_t inode; uint64_t offset; };

static bool find_area(pid_t pid, uint64_t address, uint64_t size, struct area *found) {
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

/* Maps the file of an area, which one of the process' descriptors has open. */
static uint8_t *map_file(pid_t pid, const struct area *area, uint64_t size, bool writable) {
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
        void *mapped = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, (off_t)area->offset);
        if (mapped != MAP_FAILED) host = mapped;
        close(fd);
    }
    if (list) closedir(list);
    return host;
}

static int map_vaddr(pid_t pid, const struct vfio_iommu_type1_dma_map *map) {
    const char *name = "map_vaddr";
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    struct mapping *m = NULL;
    for (size_t i = 0; i < mapping_count; i++) {
        if (mappings[i].iova <= map->iova && map->iova - mappings[i].iova < mappings[i].size) m = &mappings[i];
    }
    if (!m) return refuse(pid, name, ENOENT, "nothing is mapped there");
    if (m->has_vaddr) return refuse(pid, name, EINVAL, "its address is there already");
    if (m->iova != map->iova || m->size != map->size) return refuse(pid, name, EINVAL, "another range");
    struct area area;
    if (!find_area(pid, map->vaddr, map->size, &area)) return refuse(pid, name, EFAULT, "no memory");
    if (area.inode != m->inode || area.device != m->device || area.offset != m->offset) {
        return refuse(pid, name, EFAULT, "other memory than before");
    }
    if (m->writable && !area.writable) return refuse(pid, name, EFAULT, "memory that the process may not write");
    m->has_vaddr = true;
    note(pid, "map_vaddr iova=%#llx size=%#llx dma=%lu", map->iova, map->size, device_dma_count());
    return 0;
}

static int map_dma(pid_t pid, uint64_t argument) {
    struct vfio_iommu_type1_dma_map map;
    const char *name = "map_dma";
    if (fetch(pid, argument, &map, sizeof map)) return refuse(pid, name, EFAULT, "no argument");
    const unsigned access = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    bool only_vaddr = map.flags & VFIO_DMA_MAP_FLAG_VADDR;
    if (map.argsz < sizeof map || map.flags & ~(access | VFIO_DMA_MAP_FLAG_VADDR)) {
        return refuse(pid, name, EINVAL, "size or flags");
    }
    if (!iommu_set) return refuse(pid, name, EINVAL, "no IOMMU is set");
    if (only_vaddr == !!(map.flags & access)) return refuse(pid, name, EINVAL, "neither access nor address, or both");
    if (!map.size || (map.size | map.iova | map.vaddr) & 4095) return refuse(pid, name, EINVAL, "not whole pages");
    if (map.iova + map.size - 1 < map.iova) return refuse(pid, name, EINVAL, "wraps");
    if (only_vaddr) {
        if (settings.lacks_update_vaddr) return refuse(pid, name, EINVAL, "unknown flag");
        return map_vaddr(pid, &map);
    }
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    for (size_t i = 0; i < mapping_count; i++) {
        struct mapping *m = &mappings[i];
        if (map.iova < m->iova + m->size && m->iova < map.iova + map.size) {
            return refuse(pid, name, EEXIST, "mapped already");
        }
    }
    if (mapping_count == sizeof mappings / sizeof *mappings) return refuse(pid, name, ENOSPC, "too many");
    bool writable = map.flags & VFIO_DMA_MAP_FLAG_WRITE;
    struct area area;
    if (!find_area(pid, map.vaddr, map.size, &area)) return refuse(pid, name, EFAULT, "no memory");
    if (writable && !area.writable) return refuse(pid, name, EFAULT, "memory that the process may not write");
    uint8_t *host = area.inode ? map_file(pid, &area, map.size, writable) : NULL;
    mappings[mapping_count++] =
        (struct mapping){map.iova, map.size, writable, true, area.device, area.inode, area.offset, host};
    note(pid, "map_dma iova=%#llx size=%#llx %s", map.iova, map.size, writable ? "rw" : "r");
    return 0;
}

static int unmap_dma(pid_t pid, uint64_t argument) {
    struct vfio_iommu_type1_dma_unmap unmap;
    const size_t size = offsetof(struct vfio_iommu_type1_dma_unmap, data);
    const char *name = "unmap_dma";
    if (fetch(pid, argument, &unmap, size)) return refuse(pid, name, EFAULT, "no argument");
    const unsigned known = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR;
    if (unmap.argsz < size || unmap.flags & ~known) return refuse(pid, name, EINVAL, "size or flags");
    if (!iommu_set) return refuse(pid, name, EINVAL, "no IOMMU is set");
    if (unmap.flags != known) return refuse(pid, name, EINVAL, "guest memory must stay mapped");
    if (settings.lacks_update_vaddr || settings.lacks_unmap_all) return refuse(pid, name, EINVAL, "unknown flag");
    if (unmap.iova || unmap.size) return refuse(pid, name, EINVAL, "all, and a range");
    int error = refused("unmap_vaddr");
    if (error) return refuse(pid, "unmap_vaddr", error, "by option");
    for (size_t i = 0; i < mapping_count; i++) {
        if (!mappings[i].has_vaddr) return refuse(pid, "unmap_vaddr", EINVAL, "done already");
    }
    for (size_t i = 0; i < mapping_count; i++) mappings[i].has_vaddr = false;
    note(pid, "unmap_vaddr all dma=%lu", device_dma_count());
    return 0;
}

struct answer container_ioctl(pid_t pid, unsigned request, uint64_t argument) {
    switch (request) {
    case VFIO_GET_API_VERSION: return (struct answer){refused("get_api_version") ? 1 : VFIO_API_VERSION, -1};
    case VFIO_CHECK_EXTENSION:
        switch (argument) {
        case VFIO_TYPE1_IOMMU: case VFIO_TYPE1v2_IOMMU: return (struct answer){!settings.lacks_type1, -1};
        case VFIO_UPDATE_VADDR: return (struct answer){!settings.lacks_update_vaddr, -1};
        case VFIO_UNMAP_ALL: return (struct answer){!settings.lacks_unmap_all, -1};
        default: return (struct answer){0, -1};
        }
    case VFIO_SET_IOMMU: {
        int error = refused("set_iommu");
        if (error) return (struct answer){refuse(pid, "set_iommu", error, "by option"), -1};
        if (!group_attached) return (struct answer){refuse(pid, "set_iommu", EINVAL, "no group is attached"), -1};
        if (iommu_set) return (struct answer){refuse(pid, "set_iommu", EINVAL, "set already"), -1};
        if (argument != VFIO_TYPE1v2_IOMMU) {
            return (struct answer){refuse(pid, "set_iommu", ENODEV, "no such model"), -1};
        }
        iommu_set = true;
        note(pid, "set_iommu type1v2");
        return (struct answer){0, -1};
    }
    case VFIO_IOMMU_MAP_DMA: return (struct answer){map_dma(pid, argument), -1};
    case VFIO_IOMMU_UNMAP_DMA: return (struct answer){unmap_dma(pid, argument), -1};
    default: return (struct answer){refuse(pid, "container", ENOTTY, "unknown request"), -1};
    }
}

/* The device that GET_DEVICE_FD names, 64 bytes at most. */
static struct answer get_device(pid_t pid, uint64_t argument) {
    const char *name = "get_device_fd";
    char text[64] = "";
    size_t length = strlen(settings.device) + 1;
    if (fetch(pid, argument, text, length < sizeof text ? length : sizeof text)) {
        return (struct answer){refuse(pid, name, EFAULT, "no name"), -1};
    }
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    if (!iommu_set) return (struct answer){refuse(pid, name, EINVAL, "the group has no IOMMU"), -1};
    if (strncmp(text, settings.device, sizeof text)) {
        return (struct answer){refuse(pid, name, ENODEV, "no such device"), -1};
    }
    note(pid, "get_device_fd %s", settings.device);
    return (struct answer){0, device_fd()};
}

struct answer group_ioctl(pid_t pid, unsigned request, uint64_t argument) {
    switch (request) {
    case VFIO_GROUP_GET_STATUS: {
        struct vfio_group_status status;
        if (fetch(pid, argument, &status, sizeof status)) return (struct answer){-EFAULT, -1};
        if (status.argsz < sizeof status) return (struct answer){refuse(pid, "group_status", EINVAL, "size"), -1};
        status.flags = (settings.lacks_viable ? 0 : VFIO_GROUP_FLAGS_VIABLE)
            | (group_attached ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0);
        return (struct answer){store(pid, argument, &status, sizeof status) ? -EFAULT : 0, -1};
    }
    case VFIO_GROUP_SET_CONTAINER: {
        int fd = -1;
        struct stat ours, theirs;
        int error = refused("set_container");
        if (error) return (struct answer){refuse(pid, "set_container", error, "by option"), -1};
        if (fetch(pid, argument, &fd, sizeof fd)) return (struct answer){-EFAULT, -1};
        int copy = take_fd(pid, fd);
        bool same = copy >= 0 && !fstat(copy, &theirs) && !fstat(container, &ours) && ours.st_ino == theirs.st_ino;
        if (copy >= 0) close(copy);
        if (!same) return (struct answer){refuse(pid, "set_container", EINVAL, "no container"), -1};
        if (group_attached) return (struct answer){refuse(pid, "set_container", EINVAL, "it has one"), -1};
        group_attached = true;
        note(pid, "set_container");
        return (struct answer){0, -1};
    }
    case VFIO_GROUP_GET_DEVICE_FD: return get_device(pid, argument);
    default: return (struct answer){refuse(pid, "group", ENOTTY, "unknown request"), -1};
    }
}
