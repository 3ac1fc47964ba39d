/* iommufd and its binding to devices: drivers/iommu/iommufd/{main,ioas}.c,
 * drivers/vfio/device_cdev.c. The headers of the machine may be older. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simulator.h"

enum { DESTROY = 0x3b80, IOAS_ALLOC = 0x3b81, IOAS_MAP = 0x3b85, IOAS_UNMAP = 0x3b86, IOAS_MAP_FILE = 0x3b8f,
       IOAS_CHANGE_PROCESS = 0x3b92 };
enum { FIXED_IOVA = 1, WRITEABLE = 2, READABLE = 4 };
enum { BIND = 0x3b76, ATTACH = 0x3b77, DETACH = 0x3b78 };

struct destroy { uint32_t size, id; };
struct ioas_alloc { uint32_t size, flags, id; };
struct ioas_map { uint32_t size, flags, ioas, file; uint64_t start, length, iova; };
struct ioas_unmap { uint32_t size, ioas; uint64_t iova, length; };
struct change_process { uint32_t size, reserved; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t id; };
struct attach { uint32_t argsz, flags, id; };

static struct iommufd iommufds[MAX_DEVICES];
static size_t iommufd_count;

struct answer open_iommufd(pid_t pid) {
    const char *name = "open_iommufd";
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    if (iommufd_count == MAX_DEVICES) return (struct answer){refuse(pid, name, EMFILE, "too many"), -1};
    struct iommufd *iommufd = &iommufds[iommufd_count];
    iommufd->number = (unsigned)iommufd_count++;
    iommufd->fd = make_file(IOMMUFD_FILE, iommufd);
    note(pid, "%s", name);
    return (struct answer){0, iommufd->fd};
}

/* " iommufd=N" for all but the first. */
static const char *which(const struct iommufd *iommufd) {
    static char text[32];
    if (!iommufd->number) return "";
    snprintf(text, sizeof text, " iommufd=%u", iommufd->number);
    return text;
}

static struct object *find(struct iommufd *iommufd, uint32_t id) {
    const size_t count = sizeof iommufd->objects / sizeof *iommufd->objects;
    for (size_t i = 0; i < count; i++) {
        if (iommufd->objects[i].id == id) return &iommufd->objects[i];
    }
    return NULL;
}

static struct object *add(struct iommufd *iommufd, struct space *space, struct device *device) {
    struct object *object = find(iommufd, 0);
    if (object) *object = (struct object){++iommufd->next_id, space, device};
    return object;
}

static struct object *find_ioas(struct iommufd *iommufd, uint32_t id) {
    struct object *object = id ? find(iommufd, id) : NULL;
    return object && object->space ? object : NULL;
}

/* A process and the program in it: an exec gives the same process other memory. */
static uint64_t memory_of(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *at = strrchr(text, ')');
    /* From the state, field 3, to the stack's start, field 28. */
    for (int field = 2; at && field < 28; field++) at = strchr(at + 1, ' ');
    uint64_t stack = at ? strtoull(at + 1, NULL, 10) : 0;
    return stack ^ (uint64_t)pid << 48;
}

static int change_process(struct iommufd *iommufd, pid_t pid, uint64_t argument) {
    const char *name = "change_process";
    struct change_process change;
    if (caller_fetch(pid, argument, &change, sizeof change)) return -EFAULT;
    if (settings.lacks_change_process) return refuse(pid, name, ENOTTY, "unknown request");
    if (change.size < sizeof change) return refuse(pid, name, EINVAL, "size");
    if (change.reserved) return refuse(pid, name, EOPNOTSUPP, "reserved");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    for (size_t i = 0; i < sizeof iommufd->objects / sizeof *iommufd->objects; i++) {
        struct space *space = iommufd->objects[i].id ? iommufd->objects[i].space : NULL;
        for (size_t k = 0; space && k < space->count; k++) {
            if (!space->mappings[k].by_file) return refuse(pid, name, EINVAL, "memory that is mapped by address");
        }
    }
    uint64_t now = memory_of(pid);
    bool moved = iommufd->owner && iommufd->owner != now;
    iommufd->owner = now;
    note(pid, "change_process %s dma=%s%s", moved ? "moved" : "kept", dma_counts(), which(iommufd));
    return 0;
}

static int map(struct iommufd *iommufd, pid_t pid, uint64_t argument, bool by_file) {
    const char *name = by_file ? "ioas_map_file" : "ioas_map";
    struct ioas_map map;
    if (caller_fetch(pid, argument, &map, sizeof map)) return -EFAULT;
    if (by_file && settings.lacks_map_file) return refuse(pid, name, ENOTTY, "unknown request");
    if (map.size < sizeof map) return refuse(pid, name, EINVAL, "size");
    if (map.flags & ~(FIXED_IOVA | WRITEABLE | READABLE) || (!by_file && map.file)) {
        return refuse(pid, name, EOPNOTSUPP, "flags");
    }
    if (!(map.flags & (WRITEABLE | READABLE))) return refuse(pid, name, EINVAL, "no access");
    if (!(map.flags & FIXED_IOVA)) return refuse(pid, name, EINVAL, "guest memory must be at its address");
    struct object *ioas = find_ioas(iommufd, map.ioas);
    if (!ioas) return refuse(pid, name, ENOENT, "no such address space");
    bool writable = map.flags & WRITEABLE;
    int error = by_file
        ? space_map_file(ioas->space, pid, name, map.iova, map.length, (int)map.file, map.start, writable)
        : space_map(ioas->space, pid, name, map.iova, map.length, map.start, writable);
    if (error) return error;
    if (!iommufd->owner) iommufd->owner = memory_of(pid);
    note(pid, "%s ioas=%u iova=%#lx size=%#lx %s%s", name, map.ioas, map.iova, map.length, writable ? "rw" : "r",
         which(iommufd));
    return 0;
}

static int unmap(struct iommufd *iommufd, pid_t pid, uint64_t argument) {
    const char *name = "ioas_unmap";
    struct ioas_unmap unmap;
    if (caller_fetch(pid, argument, &unmap, sizeof unmap)) return -EFAULT;
    if (unmap.size < sizeof unmap) return refuse(pid, name, EINVAL, "size");
    struct object *ioas = find_ioas(iommufd, unmap.ioas);
    if (!ioas) return refuse(pid, name, ENOENT, "no such address space");
    if (unmap.iova || unmap.length != UINT64_MAX) return refuse(pid, name, EINVAL, "guest memory must stay mapped");
    space_clear(ioas->space);
    note(pid, "ioas_unmap ioas=%u all%s", unmap.ioas, which(iommufd));
    return 0;
}

static int destroy(struct iommufd *iommufd, pid_t pid, uint64_t argument) {
    const char *name = "destroy";
    struct destroy destroy;
    if (caller_fetch(pid, argument, &destroy, sizeof destroy)) return -EFAULT;
    if (destroy.size < sizeof destroy) return refuse(pid, name, EINVAL, "size");
    struct object *object = destroy.id ? find(iommufd, destroy.id) : NULL;
    if (!object) return refuse(pid, name, ENOENT, "no such object");
    bool used = object->device != NULL;
    for (size_t i = 0; i < device_count; i++) used = used || devices[i].ioas == object;
    if (used) return refuse(pid, name, EBUSY, "a device uses it");
    space_clear(object->space);
    free(object->space);
    *object = (struct object){0};
    note(pid, "destroy id=%u%s", destroy.id, which(iommufd));
    return 0;
}

static int alloc(struct iommufd *iommufd, pid_t pid, uint64_t argument) {
    const char *name = "ioas_alloc";
    struct ioas_alloc alloc;
    if (caller_fetch(pid, argument, &alloc, sizeof alloc)) return -EFAULT;
    if (alloc.size < sizeof alloc) return refuse(pid, name, EINVAL, "size");
    if (alloc.flags) return refuse(pid, name, EOPNOTSUPP, "flags");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    struct object *object = add(iommufd, calloc(1, sizeof(struct space)), NULL);
    if (!object) return refuse(pid, name, ENOMEM, "too many");
    alloc.id = object->id;
    note(pid, "ioas_alloc id=%u%s", object->id, which(iommufd));
    return caller_store(pid, argument, &alloc, sizeof alloc) ? -EFAULT : 0;
}

struct answer iommufd_ioctl(struct iommufd *iommufd, pid_t pid, unsigned request, uint64_t argument) {
    int result;
    switch (request) {
    case DESTROY: result = destroy(iommufd, pid, argument); break;
    case IOAS_ALLOC: result = alloc(iommufd, pid, argument); break;
    case IOAS_MAP: result = map(iommufd, pid, argument, false); break;
    case IOAS_MAP_FILE: result = map(iommufd, pid, argument, true); break;
    case IOAS_UNMAP: result = unmap(iommufd, pid, argument); break;
    case IOAS_CHANGE_PROCESS: result = change_process(iommufd, pid, argument); break;
    default: result = refuse(pid, "iommufd", ENOTTY, "unknown request");
    }
    return (struct answer){result, -1};
}

/* MARK: Devices */

struct answer open_cdev(pid_t pid, struct device *device) {
    const char *name = "open_cdev";
    int error = refused(name);
    if (error) return (struct answer){refuse(pid, name, error, "by option"), -1};
    note(pid, "open_cdev vfio%d", device->cdev);
    return (struct answer){0, device->file};
}

static int bind_device(struct device *device, pid_t pid, uint64_t argument) {
    const char *name = "bind_iommufd";
    struct bind bind;
    if (caller_fetch(pid, argument, &bind, sizeof bind)) return -EFAULT;
    if (bind.argsz < sizeof bind || bind.flags || bind.iommufd < 0) return refuse(pid, name, EINVAL, "size or flags");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    if (device->group->opened) return refuse(pid, name, EBUSY, "its group is open");
    if (device->iommufd) return refuse(pid, name, EINVAL, "it is bound");
    struct iommufd *iommufd = object_of(pid, bind.iommufd, IOMMUFD_FILE);
    if (!iommufd) return refuse(pid, name, EBADF, "no iommufd");
    struct object *object = add(iommufd, NULL, device);
    if (!object) return refuse(pid, name, ENOMEM, "too many");
    device->iommufd = iommufd;
    device->id = bind.id = object->id;
    note(pid, "bind_iommufd id=%u%s%s", object->id, which(iommufd), label(device));
    return caller_store(pid, argument, &bind, sizeof bind) ? -EFAULT : 0;
}

static int attach_device(struct device *device, pid_t pid, uint64_t argument) {
    const char *name = "attach_pt";
    struct attach attach;
    if (caller_fetch(pid, argument, &attach, sizeof attach)) return -EFAULT;
    if (attach.argsz < sizeof attach || attach.flags) return refuse(pid, name, EINVAL, "size or flags");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    struct object *ioas = find_ioas(device->iommufd, attach.id);
    if (!ioas) return refuse(pid, name, ENOENT, "no such address space");
    device->ioas = ioas;
    note(pid, "attach_pt id=%u%s%s", attach.id, which(device->iommufd), label(device));
    return 0;
}

struct answer bind_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument) {
    if (request == BIND) return (struct answer){bind_device(device, pid, argument), -1};
    if (!device->iommufd) return (struct answer){refuse(pid, "attach_pt", EINVAL, "it is not bound"), -1};
    if (request == ATTACH) return (struct answer){attach_device(device, pid, argument), -1};
    struct attach detach;
    if (caller_fetch(pid, argument, &detach, 8)) return (struct answer){-EFAULT, -1};
    if (request != DETACH || detach.argsz < 8 || detach.flags) {
        return (struct answer){refuse(pid, "detach_pt", EINVAL, "size or flags"), -1};
    }
    device->ioas = NULL;
    note(pid, "detach_pt%s", label(device));
    return (struct answer){0, -1};
}
