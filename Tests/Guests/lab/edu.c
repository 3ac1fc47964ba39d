// The guest's work on QEMU's "edu" (docs/specs/edu.rst there), a device of the lab's that is passed through: transfers
// to the device and back, and interrupts by its wire, through the guest's uio_pci_generic.

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include "lab.h"

enum {
    live = 0x04, raised = 0x24, raise = 0x60, acknowledge = 0x64,
    source = 0x80, destination = 0x88, length = 0x90, command = 0x98, memory = 0x40000,
    // Of the command; the interrupt of its end has a value of its own.
    begin = 1, to_memory = 2, interrupt = 4, end_of_transfer = 0x100,
    bytes = 2048,
};

static char address[address_size];

static void write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        FAIL("writing to %s: %s", path, strerror(errno));
    close(file);
}

static int open_file(const char *name, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", address, name);
    int file = open(path, flags | O_CLOEXEC);
    if (file < 0)
        FAIL("%s: %s", path, strerror(errno));
    return file;
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

static int events, configuration;

// Lets the device use memory, and its interrupt through: the driver holds that back after each.
static void enable(void)
{
    uint16_t memory_and_master = 0x6;
    if (pwrite(configuration, &memory_and_master, 2, 4) != 2)
        FAIL("edu's configuration space: %s", strerror(errno));
}

// Waits for an interrupt, the next by the driver's count, whose value must be `value`.
static void await_interrupt(uint32_t value, uint64_t round)
{
    static uint32_t expected;
    struct pollfd ready = {.fd = events, .events = POLLIN};
    uint32_t count = 0;
    if (poll(&ready, 1, 60000) != 1 || read(events, &count, 4) != 4)
        FAIL("edu, round %lu: no interrupt; raised %x, command %x", round, get(raised), get(command));
    uint32_t found = get(raised);
    if ((expected && count != expected) || found != value)
        FAIL("edu, round %lu: interrupt %u for %u, raised %x, not %x", round, count, expected, found, value);
    expected = count + 1;
    put(acknowledge, value);
    enable();
}

void edu_work(int unused)
{
    (void)unused;
    find_device("0x11e8", address);
    write_file("/sys/bus/pci/drivers/uio_pci_generic/new_id", "1234 11e8");
    configuration = open_file("config", O_RDWR);
    events = open("/dev/uio0", O_RDWR | O_CLOEXEC);
    registers = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, open_file("resource0", O_RDWR), 0);
    if (events < 0 || registers == MAP_FAILED)
        FAIL("edu: %s", strerror(errno));
    enable();
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
        await_interrupt(end_of_transfer, round);
        put_wide(source, memory), put_wide(destination, place + bytes), put_wide(length, bytes);
        put_wide(command, begin | to_memory | interrupt);
        await_interrupt(end_of_transfer, round);
        for (int i = 0; i < bytes / 8; i++)
            if (back[i] != mix(round, i))
                FAIL("edu, round %lu: word %d is %lx, not %lx", round, i, back[i], mix(round, i));
        uint32_t value = 1 << round % 8;
        put(raise, value);
        await_interrupt(value, round);
        add(&shared->transfers);
    }
}
