/* A device: two BARs, MSI-X, MSI and INTx; it counts into guest memory and
 * interrupts the guest for ever, once the guest has switched that on.
 *
 * BAR 0 (64 KiB), registers:
 *   0x00  magic
 *   0x08  bus address of a page: the count goes to its first doubleword
 *   0x10  control: 1 counts, 2 interrupts
 *   0x14  INTx is asserted
 *   0x18  the driver writes 1 to take INTx down
 * BAR 2 (64 KiB, 64 bits): MSI-X table, memory from 0x1000, pending bits at 0x8000. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "simulator.h"

enum { BAR_SIZE = 0x10000, ROM_SIZE = 0x8000, REGIONS = 9, IRQS = 5 };
enum { MAGIC = 0x53465642, DMA = 8, CONTROL = 0x10, STATUS = 0x14, ACKNOWLEDGE = 0x18 };
/* As the kernel places regions in the device's file. */
#define PLACE(index) ((uint64_t)(index) << 40)

static volatile uint32_t *reg(struct device *d, unsigned at) { return (volatile uint32_t *)(d->bar0 + at); }

static uint8_t *map_region(int file, unsigned index, size_t size) {
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)PLACE(index));
    if (mapped == MAP_FAILED) abort();
    return mapped;
}

void device_start(struct device *d) {
    d->file = make_file(DEVICE, d);
    d->active = -1;
    d->notices[0] = d->notices[1] = -1;
    if (ftruncate(d->file, (off_t)PLACE(8))) abort();
    d->bar0 = map_region(d->file, 0, BAR_SIZE);
    d->config = map_region(d->file, VFIO_PCI_CONFIG_REGION_INDEX, 4096);
    *reg(d, 0) = MAGIC;
    config_start(d);
    uint8_t *rom = map_region(d->file, VFIO_PCI_ROM_REGION_INDEX, ROM_SIZE);
    rom_start(rom, ROM_SIZE, d->index);
    munmap(rom, ROM_SIZE);
}

void device_reset(struct device *d) {
    for (unsigned at = DMA; at <= ACKNOWLEDGE; at += 4) *reg(d, at) = 0;
    memset(d->config + 4, 0, 2);
}

struct space *device_space(struct device *d) {
    if (d->ioas) return d->ioas->space;
    return d->group->container ? &d->group->container->space : NULL;
}

static int get_info(struct device *d, pid_t pid, uint64_t argument) {
    struct vfio_device_info info;
    int error = refused("device_info");
    if (error) return refuse(pid, "device_info", error, "by option");
    if (caller_fetch(pid, argument, &info, 16)) return -EFAULT;
    if (info.argsz < 16) return refuse(pid, "device_info", EINVAL, "size");
    info.flags = (settings.lacks_pci ? VFIO_DEVICE_FLAGS_PLATFORM : VFIO_DEVICE_FLAGS_PCI)
        | (settings.lacks_reset ? 0 : VFIO_DEVICE_FLAGS_RESET);
    info.num_regions = REGIONS;
    info.num_irqs = IRQS;
    note(pid, "device_info%s", label(d));
    return caller_store(pid, argument, &info, 16) ? -EFAULT : 0;
}

static int get_region(pid_t pid, uint64_t argument) {
    /* BAR 2 says which of its pages can be mapped. */
    struct {
        struct vfio_region_info info;
        struct { struct vfio_info_cap_header header; uint32_t nr_areas, reserved; } sparse;
        struct vfio_region_sparse_mmap_area areas[1];
    } answer = {0};
    int error = refused("region_info");
    if (error) return refuse(pid, "region_info", error, "by option");
    struct vfio_region_info *info = &answer.info;
    if (caller_fetch(pid, argument, info, sizeof *info)) return -EFAULT;
    if (info->argsz < sizeof *info || info->index >= REGIONS) {
        return refuse(pid, "region_info", EINVAL, "size or index");
    }
    uint32_t room = info->argsz;
    size_t size = sizeof *info;
    info->offset = PLACE(info->index);
    info->flags = 0;
    info->cap_offset = 0;
    info->size = 0;
    if (info->index == 0 || info->index == 2) {
        info->size = BAR_SIZE;
        info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
            | (settings.lacks_mmap ? 0 : VFIO_REGION_INFO_FLAG_MMAP);
        if (info->index == 2 && !settings.lacks_mmap) {
            info->flags |= VFIO_REGION_INFO_FLAG_CAPS;
            info->argsz = sizeof answer;
            answer.sparse.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
            answer.sparse.header.version = 1;
            answer.sparse.nr_areas = 1;
            answer.areas[0] = (struct vfio_region_sparse_mmap_area){0x1000, 0x7000};
            if (room >= sizeof answer) {
                info->cap_offset = offsetof(typeof(answer), sparse);
                size = sizeof answer;
            }
        }
        if (settings.lies_region) info->offset = UINT64_MAX - 0xfff;
    } else if (info->index == VFIO_PCI_CONFIG_REGION_INDEX) {
        info->size = config_size();
        info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    } else if (info->index == VFIO_PCI_ROM_REGION_INDEX && !settings.lacks_rom) {
        info->size = settings.lies_rom_size ? PLACE(1) : ROM_SIZE;
        info->flags = VFIO_REGION_INFO_FLAG_READ;
    }
    return caller_store(pid, argument, &answer, size) ? -EFAULT : 0;
}

static unsigned irq_count(unsigned index) {
    if (index == VFIO_PCI_INTX_IRQ_INDEX) return 1;
    if (index == VFIO_PCI_ERR_IRQ_INDEX) return !settings.lacks_express;
    if (index == VFIO_PCI_REQ_IRQ_INDEX) return !settings.lacks_request;
    return index == VFIO_PCI_MSI_IRQ_INDEX || index == VFIO_PCI_MSIX_IRQ_INDEX ? VECTORS : 0;
}

static int get_irq(pid_t pid, uint64_t argument) {
    struct vfio_irq_info info;
    if (caller_fetch(pid, argument, &info, sizeof info)) return -EFAULT;
    if (info.argsz < sizeof info || info.index >= IRQS) return refuse(pid, "irq_info", EINVAL, "size or index");
    /* As the kernel says it of a function that is not of PCI Express. */
    if (info.index == VFIO_PCI_ERR_IRQ_INDEX && settings.lacks_express) return -EINVAL;
    info.count = irq_count(info.index);
    info.flags = VFIO_IRQ_INFO_EVENTFD
        | (info.index == VFIO_PCI_INTX_IRQ_INDEX ? VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
                                                 : VFIO_IRQ_INFO_NORESIZE);
    return caller_store(pid, argument, &info, sizeof info) ? -EFAULT : 0;
}

static void signal_event(struct device *d, unsigned index) {
    uint64_t one = 1;
    (void)!write(d->events[index], &one, sizeof one);
}

/* A device takes its interrupt down as soon as the driver says so. */
static void take_acknowledge(struct device *d) {
    if (!*reg(d, ACKNOWLEDGE)) return;
    *reg(d, ACKNOWLEDGE) = 0;
    *reg(d, STATUS) = 0;
}

static void assert_intx(struct device *d) {
    take_acknowledge(d);
    if (*reg(d, STATUS) && !d->intx_masked && d->active == VFIO_PCI_INTX_IRQ_INDEX) {
        d->intx_masked = true;
        signal_event(d, 0);
    }
}

static void drop_events(struct device *d) {
    for (unsigned i = 0; i < d->event_count; i++) close(d->events[i]);
    d->event_count = 0;
    d->active = -1;
    d->intx_masked = false;
}

/* The eventfd of an error or a request, which a device has beside its interrupts. */
static int set_notice(struct device *d, pid_t pid, uint64_t argument, const struct vfio_irq_set *set) {
    int *event = &d->notices[set->index - VFIO_PCI_ERR_IRQ_INDEX];
    const char *name = "set_irqs";
    if (set->flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER) && !set->count) {
        if (*event < 0) return refuse(pid, name, EINVAL, "not in use");
        close(*event);
        *event = -1;
        note(pid, "set_irqs index=%u off%s", set->index, label(d));
        return 0;
    }
    if (set->flags != (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER) || !set->count || set->start) {
        return refuse(pid, name, EINVAL, "flags");
    }
    if (set->argsz != sizeof *set + 4) return refuse(pid, name, EINVAL, "size");
    if (*event >= 0) return refuse(pid, name, EINVAL, "another is in use");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    int32_t fd;
    if (caller_fetch(pid, argument + sizeof *set, &fd, sizeof fd)) return -EFAULT;
    *event = caller_take_fd(pid, fd);
    if (*event < 0) return refuse(pid, name, EBADF, "no eventfd");
    note(pid, "set_irqs index=%u count=1%s", set->index, label(d));
    return 0;
}

void device_notice(struct device *d, unsigned index) {
    int event = d->notices[index - VFIO_PCI_ERR_IRQ_INDEX];
    uint64_t one = 1;
    bool told = event >= 0 && write(event, &one, sizeof one) == sizeof one;
    note(0, "notice index=%u %s%s", index, told ? "told" : "untold", label(d));
}

static int set_irqs(struct device *d, pid_t pid, uint64_t argument) {
    struct vfio_irq_set head_of_request, *set = &head_of_request;
    int32_t fds[VECTORS];
    const char *name = "set_irqs";
    const unsigned head = sizeof(struct vfio_irq_set);
    if (caller_fetch(pid, argument, set, head)) return -EFAULT;
    if (set->argsz < head || set->index >= IRQS) return refuse(pid, name, EINVAL, "size or index");
    if (set->start >= irq_count(set->index) || set->count > irq_count(set->index) - set->start) {
        return refuse(pid, name, EINVAL, "no such interrupts");
    }
    if (set->index >= VFIO_PCI_ERR_IRQ_INDEX) return set_notice(d, pid, argument, set);
    if (set->flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK)) {
        if (set->index != VFIO_PCI_INTX_IRQ_INDEX || d->active != VFIO_PCI_INTX_IRQ_INDEX || set->count != 1) {
            return refuse(pid, name, EINVAL, "unmask of what cannot be masked");
        }
        d->intx_masked = false;
        assert_intx(d);
        return 0;
    }
    if (set->flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER) && !set->count) {
        if (d->active != (int)set->index) return refuse(pid, name, EINVAL, "not in use");
        drop_events(d);
        note(pid, "set_irqs index=%u off%s", set->index, label(d));
        return 0;
    }
    if (set->flags != (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER) || !set->count || set->start) {
        return refuse(pid, name, EINVAL, "flags");
    }
    if (d->active >= 0) return refuse(pid, name, EINVAL, "others are in use");
    if (set->argsz != head + 4 * set->count) return refuse(pid, name, EINVAL, "size");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    if (caller_fetch(pid, argument + head, fds, 4 * set->count)) return -EFAULT;
    for (unsigned i = 0; i < set->count; i++) {
        int copy = caller_take_fd(pid, fds[i]);
        if (copy < 0) {
            drop_events(d);
            return refuse(pid, name, EBADF, "no eventfd");
        }
        d->events[d->event_count++] = copy;
    }
    d->active = (int)set->index;
    note(pid, "set_irqs index=%u count=%u%s", set->index, set->count, label(d));
    return 0;
}

struct answer device_ioctl(struct device *d, pid_t pid, unsigned request, uint64_t argument) {
    if (request >= 0x3b76 && request <= 0x3b78) return bind_ioctl(d, pid, request, argument);
    if (!d->iommufd && !d->group->opened) {
        return (struct answer){refuse(pid, "device", EINVAL, "it is neither bound nor of a group that is open"), -1};
    }
    long result;
    switch (request) {
    case VFIO_DEVICE_GET_INFO: result = get_info(d, pid, argument); break;
    case VFIO_DEVICE_GET_REGION_INFO: result = get_region(pid, argument); break;
    case VFIO_DEVICE_GET_IRQ_INFO: result = get_irq(pid, argument); break;
    case VFIO_DEVICE_SET_IRQS: result = set_irqs(d, pid, argument); break;
    case VFIO_DEVICE_RESET: case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: case VFIO_DEVICE_PCI_HOT_RESET:
        return reset_ioctl(d, pid, request, argument);
    default: result = refuse(pid, "device", ENOTTY, "unknown request");
    }
    return (struct answer){result, -1};
}

void device_tick(struct device *d) {
    take_acknowledge(d);
    uint32_t control = *reg(d, CONTROL);
    if (!(d->config[4] & 4) || !control) return;
    if (control & 1) {
        uint64_t address = (uint64_t)*reg(d, DMA + 4) << 32 | *reg(d, DMA);
        struct space *space = device_space(d);
        volatile uint64_t *target = address & 7 || !space ? NULL : space_translate(space, address, 8, true);
        if (target) *target = ++d->dma_count;
        else if (!d->fault_count++) note(0, "fault iova=%#lx%s", address, label(d));
    }
    if (!(control & 2) || d->active < 0) return;
    if (d->active == VFIO_PCI_INTX_IRQ_INDEX) {
        *reg(d, STATUS) = 1;
        assert_intx(d);
    } else {
        signal_event(d, (unsigned)(d->raised % d->event_count));
    }
    d->raised++;
}
