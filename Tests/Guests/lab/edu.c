// The guest's work on QEMU's "edu" (docs/specs/edu.rst there), a device of the lab's that is passed through: transfers
// to the device and back, and interrupts by MSI, through the guest's own vfio-pci without an IOMMU.

#include <dirent.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include "lab.h"

enum {
    live = 0x04, raised = 0x24, raise = 0x60, acknowledge = 0x64,
    source = 0x80, destination = 0x88, length = 0x90, command = 0x98, memory = 0x40000,
    // Of the command; the interrupt of its end has a value of its own.
    begin = 1, to_memory = 2, interrupt = 4, end_of_transfer = 0x100,
    bytes = 2048,
};

static char address[32];

int find_edu(void)
{
    DIR *devices = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    while (devices && (entry = readdir(devices))) {
        char path[300], id[16];
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/device", entry->d_name);
        read_line(path, id, sizeof id);
        if (!strcmp(id, "0x11e8"))
            snprintf(address, sizeof address, "%.31s", entry->d_name);
    }
    if (devices)
        closedir(devices);
    return address[0] != 0;
}

static void write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        FAIL("writing to %s: %s", path, strerror(errno));
    close(file);
}

static int open_device(void)
{
    char path[64];
    write_file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1");
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/driver_override", address);
    write_file(path, "vfio-pci");
    write_file("/sys/bus/pci/drivers_probe", address);
    int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    int group = open("/dev/vfio/noiommu-0", O_RDWR | O_CLOEXEC);
    if (container < 0 || group < 0 || ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
        ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU))
        FAIL("the guest's VFIO: %s", strerror(errno));
    int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address);
    if (device < 0)
        FAIL("the guest's device %s: %s", address, strerror(errno));
    return device;
}

// The guest's physical address of a page that stays where it is.
static uint64_t physical(void *page)
{
    uint64_t entry = 0;
    int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pread(map, &entry, 8, (uintptr_t)page / 4096 * 8) != 8 || !(entry & 1ull << 63))
        FAIL("/proc/self/pagemap: %s", strerror(errno));
    close(map);
    return (entry & ((1ull << 55) - 1)) * 4096;
}

static volatile uint8_t *registers;

static uint32_t get(int offset) { return *(volatile uint32_t *)(registers + offset); }
static void put(int offset, uint32_t value) { *(volatile uint32_t *)(registers + offset) = value; }
static void put_wide(int offset, uint64_t value) { *(volatile uint64_t *)(registers + offset) = value; }

// Waits for one interrupt, whose value must be `value`.
static void await_interrupt(int event, uint32_t value, uint64_t round)
{
    struct pollfd ready = {.fd = event, .events = POLLIN};
    uint64_t count = 0;
    if (poll(&ready, 1, 60000) != 1 || read(event, &count, 8) != 8)
        FAIL("edu, round %lu: no interrupt; raised %x, command %x", round, get(raised), get(command));
    uint32_t found = get(raised);
    if (count != 1 || found != value)
        FAIL("edu, round %lu: %lu interrupts, raised %x, not %x", round, count, found, value);
    put(acknowledge, value);
}

void edu_work(int unused)
{
    (void)unused;
    int device = open_device(), event = eventfd(0, EFD_CLOEXEC);
    struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
    struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
        FAIL("edu's regions: %s", strerror(errno));
    registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
    // Memory space and bus master.
    uint16_t enabled = 0x6;
    // With one descriptor behind it.
    uint8_t msi[sizeof(struct vfio_irq_set) + sizeof event];
    struct vfio_irq_set set = {
        .argsz = sizeof msi, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFIO_PCI_MSI_IRQ_INDEX, .count = 1};
    memcpy(msi, &set, sizeof set), memcpy(msi + sizeof set, &event, sizeof event);
    if (registers == MAP_FAILED || pwrite(device, &enabled, 2, config.offset + 4) != 2 ||
        ioctl(device, VFIO_DEVICE_SET_IRQS, msi))
        FAIL("edu: %s", strerror(errno));
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE;
    uint64_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
    page[0] = 1;
    uint64_t place = physical(page);

    for (uint64_t round = 1;; round++) {
        put(live, round);
        if (get(live) != ~(uint32_t)round)
            FAIL("edu, round %lu: answers %x", round, get(live));
        uint64_t *back = page + bytes / 8;
        for (int i = 0; i < bytes / 8; i++)
            page[i] = mix(round, i), back[i] = 0;
        put_wide(source, place), put_wide(destination, memory), put_wide(length, bytes);
        put_wide(command, begin | interrupt);
        await_interrupt(event, end_of_transfer, round);
        put_wide(source, memory), put_wide(destination, place + bytes), put_wide(length, bytes);
        put_wide(command, begin | to_memory | interrupt);
        await_interrupt(event, end_of_transfer, round);
        for (int i = 0; i < bytes / 8; i++)
            if (back[i] != mix(round, i))
                FAIL("edu, round %lu: word %d is %lx, not %lx", round, i, back[i], mix(round, i));
        uint32_t value = 1 << round % 8;
        put(raise, value);
        await_interrupt(event, value, round);
        add(&shared->transfers);
    }
}
