/* Containers and groups: drivers/vfio/container.c, group.c, vfio_iommu_type1.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "simulator.h"

static struct container containers[MAX_DEVICES];
static size_t container_count;

struct group *group_number(int number) {
    for (size_t i = 0; i < group_count; i++) {
        if (groups[i].number == number) return &groups[i];
    }
    return NULL;
}

struct answer open_container(pid_t pid) {
    const char *name = "open_container";
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    if (container_count == MAX_DEVICES) return (struct answer){refuse(pid, name, EMFILE, "too many"), -1};
    struct container *container = &containers[container_count];
    container->number = (unsigned)container_count++;
    container->fd = make_file(CONTAINER, container);
    note(pid, "%s", name);
    return (struct answer){0, container->fd};
}

struct answer open_group(pid_t pid, struct group *group) {
    const char *name = "open_group";
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    if (group->opened) return (struct answer){refuse(pid, name, EBUSY, "open already"), -1};
    for (size_t i = 0; i < device_count; i++) {
        if (devices[i].group == group && devices[i].iommufd) {
            return (struct answer){refuse(pid, name, EBUSY, "a device of it is bound to an iommufd"), -1};
        }
    }
    group->opened = true;
    if (group_count > 1) note(pid, "%s %d", name, group->number);
    else note(pid, "%s", name);
    return (struct answer){0, group->fd};
}

/* " container=N" for all but the first. */
static const char *which(const struct container *container) {
    static const char *names[MAX_DEVICES] = {"", " container=1", " container=2", " container=3",
                                             " container=4", " container=5", " container=6", " container=7"};
    return names[container->number];
}

static int map_vaddr(struct container *container, pid_t pid, const struct vfio_iommu_type1_dma_map *map) {
    const char *name = "map_vaddr";
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    struct mapping *m = NULL;
    for (size_t i = 0; i < container->space.count; i++) {
        struct mapping *other = &container->space.mappings[i];
        if (other->iova <= map->iova && map->iova - other->iova < other->size) m = other;
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
    note(pid, "map_vaddr iova=%#llx size=%#llx dma=%s%s", map->iova, map->size, dma_counts(), which(container));
    return 0;
}

static int map_dma(struct container *container, pid_t pid, uint64_t argument) {
    struct vfio_iommu_type1_dma_map map;
    const char *name = "map_dma";
    if (caller_fetch(pid, argument, &map, sizeof map)) return refuse(pid, name, EFAULT, "no argument");
    const unsigned access = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    bool only_vaddr = map.flags & VFIO_DMA_MAP_FLAG_VADDR;
    if (map.argsz < sizeof map || map.flags & ~(access | VFIO_DMA_MAP_FLAG_VADDR)) {
        return refuse(pid, name, EINVAL, "size or flags");
    }
    if (!container->iommu_set) return refuse(pid, name, EINVAL, "no IOMMU is set");
    if (only_vaddr == !!(map.flags & access)) return refuse(pid, name, EINVAL, "neither access nor address, or both");
    if (only_vaddr) {
        if (settings.lacks_update_vaddr) return refuse(pid, name, EINVAL, "unknown flag");
        return map_vaddr(container, pid, &map);
    }
    bool writable = map.flags & VFIO_DMA_MAP_FLAG_WRITE;
    int error = space_map(&container->space, pid, name, map.iova, map.size, map.vaddr, writable);
    if (error) return error;
    note(pid, "map_dma iova=%#llx size=%#llx %s%s", map.iova, map.size, writable ? "rw" : "r", which(container));
    return 0;
}

static int unmap_dma(struct container *container, pid_t pid, uint64_t argument) {
    struct vfio_iommu_type1_dma_unmap unmap;
    const size_t size = offsetof(struct vfio_iommu_type1_dma_unmap, data);
    const char *name = "unmap_dma";
    if (caller_fetch(pid, argument, &unmap, size)) return refuse(pid, name, EFAULT, "no argument");
    const unsigned known = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR;
    if (unmap.argsz < size || unmap.flags & ~known) return refuse(pid, name, EINVAL, "size or flags");
    if (!container->iommu_set) return refuse(pid, name, EINVAL, "no IOMMU is set");
    if (unmap.flags != known) return refuse(pid, name, EINVAL, "guest memory must stay mapped");
    if (settings.lacks_update_vaddr || settings.lacks_unmap_all) return refuse(pid, name, EINVAL, "unknown flag");
    if (unmap.iova || unmap.size) return refuse(pid, name, EINVAL, "all, and a range");
    int error = refused("unmap_vaddr");
    if (error) return refuse(pid, "unmap_vaddr", error, "by option");
    struct space *space = &container->space;
    for (size_t i = 0; i < space->count; i++) {
        if (!space->mappings[i].has_vaddr) return refuse(pid, "unmap_vaddr", EINVAL, "done already");
    }
    for (size_t i = 0; i < space->count; i++) space->mappings[i].has_vaddr = false;
    note(pid, "unmap_vaddr all dma=%s%s", dma_counts(), which(container));
    return 0;
}

static int set_iommu(struct container *container, pid_t pid, uint64_t argument) {
    const char *name = "set_iommu";
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    if (!container->groups) return refuse(pid, name, EINVAL, "no group is attached");
    if (container->iommu_set) return refuse(pid, name, EINVAL, "set already");
    if (argument != VFIO_TYPE1v2_IOMMU) return refuse(pid, name, ENODEV, "no such model");
    container->iommu_set = true;
    note(pid, "set_iommu type1v2%s", which(container));
    return 0;
}

struct answer container_ioctl(struct container *container, pid_t pid, unsigned request, uint64_t argument) {
    switch (request) {
    case VFIO_GET_API_VERSION: return (struct answer){refused("get_api_version") ? 1 : VFIO_API_VERSION, -1};
    case VFIO_CHECK_EXTENSION:
        switch (argument) {
        case VFIO_TYPE1_IOMMU: case VFIO_TYPE1v2_IOMMU: return (struct answer){!settings.lacks_type1, -1};
        /* Only the model that has been set answers for this: vfio_iommu_type1_check_extension. */
        case VFIO_UPDATE_VADDR: return (struct answer){container->iommu_set && !settings.lacks_update_vaddr, -1};
        case VFIO_UNMAP_ALL: return (struct answer){!settings.lacks_unmap_all, -1};
        default: return (struct answer){0, -1};
        }
    case VFIO_SET_IOMMU: return (struct answer){set_iommu(container, pid, argument), -1};
    case VFIO_IOMMU_MAP_DMA: return (struct answer){map_dma(container, pid, argument), -1};
    case VFIO_IOMMU_UNMAP_DMA: return (struct answer){unmap_dma(container, pid, argument), -1};
    default: return (struct answer){refuse(pid, "container", ENOTTY, "unknown request"), -1};
    }
}

/* The device that GET_DEVICE_FD names, 64 bytes at most. */
static struct answer get_device(struct group *group, pid_t pid, uint64_t argument) {
    const char *name = "get_device_fd";
    char text[64] = "";
    size_t size = sizeof text;
    while (size && caller_fetch(pid, argument, text, size)) size--;
    if (!size) return (struct answer){refuse(pid, name, EFAULT, "no name"), -1};
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    if (!group->container || !group->container->iommu_set) {
        return (struct answer){refuse(pid, name, EINVAL, "the group has no IOMMU"), -1};
    }
    for (size_t i = 0; i < device_count; i++) {
        if (devices[i].group != group || strncmp(text, devices[i].name, sizeof text)) continue;
        note(pid, "get_device_fd %s", devices[i].name);
        return (struct answer){0, devices[i].file};
    }
    return (struct answer){refuse(pid, name, ENODEV, "no such device"), -1};
}

static int set_container(struct group *group, pid_t pid, uint64_t argument) {
    const char *name = "set_container";
    int fd = -1;
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    if (caller_fetch(pid, argument, &fd, sizeof fd)) return -EFAULT;
    struct container *container = object_of(pid, fd, CONTAINER);
    if (!container) return refuse(pid, name, EINVAL, "no container");
    if (group->container) return refuse(pid, name, EINVAL, "it has one");
    group->container = container;
    container->groups++;
    note(pid, "set_container%s", which(container));
    return 0;
}

struct answer group_ioctl(struct group *group, pid_t pid, unsigned request, uint64_t argument) {
    switch (request) {
    case VFIO_GROUP_GET_STATUS: {
        struct vfio_group_status status;
        if (caller_fetch(pid, argument, &status, sizeof status)) return (struct answer){-EFAULT, -1};
        if (status.argsz < sizeof status) return (struct answer){refuse(pid, "group_status", EINVAL, "size"), -1};
        status.flags = (settings.lacks_viable ? 0 : VFIO_GROUP_FLAGS_VIABLE)
            | (group->container ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0);
        return (struct answer){caller_store(pid, argument, &status, sizeof status) ? -EFAULT : 0, -1};
    }
    case VFIO_GROUP_SET_CONTAINER: return (struct answer){set_container(group, pid, argument), -1};
    case VFIO_GROUP_GET_DEVICE_FD: return get_device(group, pid, argument);
    default: return (struct answer){refuse(pid, "group", ENOTTY, "unknown request"), -1};
    }
}
