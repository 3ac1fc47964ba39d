/* Resets: of a function, and of all functions of its slot
 * (VFIO_DEVICE_PCI_HOT_RESET, drivers/vfio/pci/vfio_pci_core.c). */
#include <errno.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>

#include "simulator.h"

enum { FLAG_DEV_ID = 1, FLAG_OWNED = 2 };
static const uint32_t owned = 0, not_owned = UINT32_MAX;

struct dependent { uint32_t id; uint16_t segment; uint8_t bus, devfn; };
struct info { uint32_t argsz, flags, count; struct dependent devices[MAX_DEVICES]; };
struct hot_reset { uint32_t argsz, flags, count; int32_t groups[MAX_DEVICES]; };

/* The functions of one slot: all of the name but the function. */
static bool same_slot(const struct device *a, const struct device *b) {
    const char *dot = strrchr(a->name, '.');
    return dot && !strncmp(a->name, b->name, (size_t)(dot - a->name + 1));
}

/* Whether a device is one that the owner of another's iommufd can reset. */
static uint32_t identity(const struct device *asking, const struct device *other) {
    if (other->iommufd == asking->iommufd) return other->id;
    for (size_t i = 0; i < device_count; i++) {
        if (devices[i].group == other->group && devices[i].iommufd == asking->iommufd && !other->iommufd) return owned;
    }
    return not_owned;
}

static int get_info(struct device *device, pid_t pid, uint64_t argument) {
    struct info info = {0};
    const char *name = "hot_reset_info";
    const unsigned head = offsetof(struct info, devices);
    if (caller_fetch(pid, argument, &info, head)) return -EFAULT;
    if (info.argsz < head) return refuse(pid, name, EINVAL, "size");
    if (settings.lacks_hot_reset) return refuse(pid, name, ENODEV, "neither slot nor bus can be reset");
    unsigned room = (info.argsz - head) / sizeof *info.devices;
    info.count = 0;
    info.flags = device->iommufd ? FLAG_DEV_ID | FLAG_OWNED : 0;
    for (size_t i = 0; i < device_count; i++) {
        struct device *other = &devices[i];
        unsigned segment, bus, slot, function;
        if (!same_slot(device, other)) continue;
        if (sscanf(other->name, "%x:%x:%x.%x", &segment, &bus, &slot, &function) != 4) continue;
        uint32_t id = device->iommufd ? identity(device, other) : (uint32_t)other->group->number;
        if (device->iommufd && id == not_owned) info.flags &= ~(uint32_t)FLAG_OWNED;
        info.devices[info.count++] =
            (struct dependent){id, (uint16_t)segment, (uint8_t)bus, (uint8_t)(slot << 3 | function)};
    }
    unsigned fit = info.count <= room ? info.count : 0;
    bool complete = info.count <= room;
    if (settings.lies_hot_reset_count) info.count = 0x40000000;
    if (caller_store(pid, argument, &info, head + fit * sizeof *info.devices)) return -EFAULT;
    return complete && !settings.lies_hot_reset_count ? 0 : -ENOSPC;
}

static int hot_reset(struct device *device, pid_t pid, uint64_t argument) {
    const char *name = "hot_reset";
    struct hot_reset reset;
    struct group *given[MAX_DEVICES];
    const unsigned head = offsetof(struct hot_reset, groups);
    if (caller_fetch(pid, argument, &reset, head)) return -EFAULT;
    if (reset.argsz < head || reset.flags) return refuse(pid, name, EINVAL, "size or flags");
    if (settings.lacks_hot_reset) return refuse(pid, name, ENODEV, "neither slot nor bus can be reset");
    if (!!device->iommufd == !!reset.count) return refuse(pid, name, EINVAL, "groups, or none of them");
    if (reset.count > MAX_DEVICES || reset.argsz < head + 4 * reset.count) return refuse(pid, name, EINVAL, "count");
    if (caller_fetch(pid, argument + head, reset.groups, 4 * reset.count)) return -EFAULT;
    for (unsigned i = 0; i < reset.count; i++) {
        given[i] = object_of(pid, reset.groups[i], GROUP);
        if (!given[i]) return refuse(pid, name, EINVAL, "no group");
    }
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    for (size_t i = 0; i < device_count; i++) {
        if (!same_slot(device, &devices[i])) continue;
        bool is_ours = device->iommufd && identity(device, &devices[i]) != not_owned;
        for (unsigned k = 0; k < reset.count; k++) is_ours = is_ours || given[k] == devices[i].group;
        if (!is_ours) return refuse(pid, name, EINVAL, "a device that is not the caller's");
        if (devices[i].active >= 0) return refuse(pid, name, EBUSY, "a device whose interrupts are in use");
    }
    for (size_t i = 0; i < device_count; i++) {
        if (same_slot(device, &devices[i])) device_reset(&devices[i]);
    }
    note(pid, "hot_reset%s", label(device));
    return 0;
}

static int function_reset(struct device *device, pid_t pid) {
    if (settings.lacks_reset) return refuse(pid, "reset", EINVAL, "not supported");
    int error = refused("reset");
    if (error) return refuse(pid, "reset", error, "by option");
    device_reset(device);
    note(pid, "reset%s", label(device));
    return 0;
}

struct answer reset_ioctl(struct device *device, pid_t pid, unsigned request, uint64_t argument) {
    switch (request) {
    case VFIO_DEVICE_RESET: return (struct answer){function_reset(device, pid), -1};
    case VFIO_DEVICE_PCI_HOT_RESET: return (struct answer){hot_reset(device, pid, argument), -1};
    default: return (struct answer){get_info(device, pid, argument), -1};
    }
}
