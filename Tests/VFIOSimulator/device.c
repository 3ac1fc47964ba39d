/* The device: two BARs, MSI-X, MSI and INTx; it counts into guest memory and
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
#include <time.h>
#include <unistd.h>

#include "simulator.h"

enum { BAR_SIZE = 0x10000, CONFIG_SIZE = 256, VECTORS = 4, REGIONS = 9, IRQS = 5 };
enum { MAGIC = 0x53465642, DMA = 8, CONTROL = 0x10, STATUS = 0x14, ACKNOWLEDGE = 0x18 };
/* As the kernel places regions in the device's file. */
#define PLACE(index) ((uint64_t)(index) << 40)

static int file = -1;
static uint8_t *bar0, *config;
static int active = -1; /* index of the interrupts in use */
static int events[VECTORS];
static unsigned event_count;
static bool intx_masked;
static uint64_t dma_count, fault_count, raised;

static void put16(unsigned at, uint16_t value) { memcpy(config + at, &value, 2); }
static void put32(unsigned at, uint32_t value) { memcpy(config + at, &value, 4); }
static volatile uint32_t *reg(unsigned at) { return (volatile uint32_t *)(bar0 + at); }

static uint8_t *map_region(unsigned index, size_t size) {
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)PLACE(index));
    if (mapped == MAP_FAILED) abort();
    return mapped;
}

void device_start(void) {
    file = memfd_create("vfio-simulated-device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)PLACE(8))) abort();
    bar0 = map_region(0, BAR_SIZE);
    config = map_region(VFIO_PCI_CONFIG_REGION_INDEX, 4096);
    *reg(0) = MAGIC;
    put32(0x00, 0x56491234);
    put16(0x06, 0x10);
    put32(0x08, 0xff000001);
    put32(0x18, 0x0c); /* BAR 2: 64 bits, prefetchable */
    put32(0x2c, 0x00011234);
    config[0x34] = 0x40;
    config[0x3d] = 1;
    put16(0x40, 0x5001); /* power management */
    put16(0x42, 0x0003);
    put16(0x50, 0x6011); /* MSI-X */
    put16(0x52, VECTORS - 1);
    put32(0x54, 2);
    put32(0x58, 0x8002);
    put16(0x60, 0x0005); /* MSI: 64 bits, no masks */
    put16(0x62, 0x0080 | 2 << 1);
}

int device_fd(void) { return file; }
uint64_t device_dma_count(void) { return dma_count; }

static int get_info(pid_t pid, uint64_t argument) {
    struct vfio_device_info info;
    int error = refused("device_info");
    if (error) return refuse(pid, "device_info", error, "by option");
    if (fetch(pid, argument, &info, 16)) return -EFAULT;
    if (info.argsz < 16) return refuse(pid, "device_info", EINVAL, "size");
    info.flags = (settings.lacks_pci ? VFIO_DEVICE_FLAGS_PLATFORM : VFIO_DEVICE_FLAGS_PCI)
        | (settings.lacks_reset ? 0 : VFIO_DEVICE_FLAGS_RESET);
    info.num_regions = REGIONS;
    info.num_irqs = IRQS;
    note(pid, "device_info");
    return store(pid, argument, &info, 16) ? -EFAULT : 0;
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
    if (fetch(pid, argument, info, sizeof *info)) return -EFAULT;
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
    } else if (info->index == VFIO_PCI_CONFIG_REGION_INDEX) {
        info->size = CONFIG_SIZE;
        info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    }
    return store(pid, argument, &answer, size) ? -EFAULT : 0;
}

static unsigned irq_count(unsigned index) {
    if (index == VFIO_PCI_INTX_IRQ_INDEX) return 1;
    return index == VFIO_PCI_MSI_IRQ_INDEX || index == VFIO_PCI_MSIX_IRQ_INDEX ? VECTORS : 0;
}

static int get_irq(pid_t pid, uint64_t argument) {
    struct vfio_irq_info info;
    if (fetch(pid, argument, &info, sizeof info)) return -EFAULT;
    if (info.argsz < sizeof info || info.index >= IRQS) return refuse(pid, "irq_info", EINVAL, "size or index");
    info.count = irq_count(info.index);
    info.flags = VFIO_IRQ_INFO_EVENTFD
        | (info.index == VFIO_PCI_INTX_IRQ_INDEX ? VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED
                                                 : VFIO_IRQ_INFO_NORESIZE);
    return store(pid, argument, &info, sizeof info) ? -EFAULT : 0;
}

static void signal_event(unsigned index) {
    uint64_t one = 1;
    (void)!write(events[index], &one, sizeof one);
}

/* A device takes its interrupt down as soon as the driver says so. */
static void take_acknowledge(void) {
    if (!*reg(ACKNOWLEDGE)) return;
    *reg(ACKNOWLEDGE) = 0;
    *reg(STATUS) = 0;
}

static void assert_intx(void) {
    take_acknowledge();
    if (*reg(STATUS) && !intx_masked && active == VFIO_PCI_INTX_IRQ_INDEX) {
        intx_masked = true;
        signal_event(0);
    }
}

static void drop_events(void) {
    for (unsigned i = 0; i < event_count; i++) close(events[i]);
    event_count = 0;
    active = -1;
    intx_masked = false;
}

static int set_irqs(pid_t pid, uint64_t argument) {
    struct vfio_irq_set head_of_request, *set = &head_of_request;
    int32_t fds[VECTORS];
    const char *name = "set_irqs";
    const unsigned head = sizeof(struct vfio_irq_set);
    if (fetch(pid, argument, set, head)) return -EFAULT;
    if (set->argsz < head || set->index >= IRQS) return refuse(pid, name, EINVAL, "size or index");
    if (set->start > irq_count(set->index) || set->count > irq_count(set->index) - set->start) {
        return refuse(pid, name, EINVAL, "no such interrupts");
    }
    if (set->flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK)) {
        if (set->index != VFIO_PCI_INTX_IRQ_INDEX || active != VFIO_PCI_INTX_IRQ_INDEX || set->count != 1) {
            return refuse(pid, name, EINVAL, "unmask of what cannot be masked");
        }
        intx_masked = false;
        assert_intx();
        return 0;
    }
    if (set->flags == (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER) && !set->count) {
        if (active != (int)set->index) return refuse(pid, name, EINVAL, "not in use");
        drop_events();
        note(pid, "set_irqs index=%u off", set->index);
        return 0;
    }
    if (set->flags != (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER) || !set->count || set->start) {
        return refuse(pid, name, EINVAL, "flags");
    }
    if (active >= 0) return refuse(pid, name, EINVAL, "others are in use");
    if (set->argsz != head + 4 * set->count) return refuse(pid, name, EINVAL, "size");
    int error = refused(name);
    if (error) return refuse(pid, name, error, "by option");
    if (fetch(pid, argument + head, fds, 4 * set->count)) return -EFAULT;
    for (unsigned i = 0; i < set->count; i++) {
        int copy = take_fd(pid, fds[i]);
        if (copy < 0) {
            drop_events();
            return refuse(pid, name, EBADF, "no eventfd");
        }
        events[event_count++] = copy;
    }
    active = (int)set->index;
    note(pid, "set_irqs index=%u count=%u", set->index, set->count);
    return 0;
}

struct answer device_ioctl(pid_t pid, unsigned request, uint64_t argument) {
    long result;
    switch (request) {
    case VFIO_DEVICE_GET_INFO: result = get_info(pid, argument); break;
    case VFIO_DEVICE_GET_REGION_INFO: result = get_region(pid, argument); break;
    case VFIO_DEVICE_GET_IRQ_INFO: result = get_irq(pid, argument); break;
    case VFIO_DEVICE_SET_IRQS: result = set_irqs(pid, argument); break;
    case VFIO_DEVICE_RESET:
        if (settings.lacks_reset) {
            result = refuse(pid, "reset", EINVAL, "not supported");
            break;
        }
        for (unsigned at = DMA; at <= ACKNOWLEDGE; at += 4) *reg(at) = 0;
        put16(0x04, 0);
        note(pid, "reset");
        result = 0;
        break;
    default: result = refuse(pid, "device", ENOTTY, "unknown request");
    }
    return (struct answer){result, -1};
}

void device_tick(void) {
    take_acknowledge();
    uint32_t control = *reg(CONTROL);
    if (!(config[4] & 4) || !control) return;
    if (control & 1) {
        uint64_t address = (uint64_t)*reg(DMA + 4) << 32 | *reg(DMA);
        volatile uint64_t *target = address & 7 ? NULL : iommu_translate(address, 8, true);
        if (target) *target = ++dma_count;
        else if (!fault_count++) note(0, "fault iova=%#lx", address);
    }
    if (!(control & 2) || active < 0) return;
    if (active == VFIO_PCI_INTX_IRQ_INDEX) {
        *reg(STATUS) = 1;
        assert_intx();
    } else {
        signal_event((unsigned)(raised % event_count));
    }
    raised++;
}

void device_report(void) { note(0, "end dma=%lu faults=%lu interrupts=%lu", dma_count, fault_count, raised); }
