#define _GNU_SOURCE
#include "device.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAGIC = 0x53465642, DMA = 8, CONTROL = 0x10, STATUS = 0x14, ACKNOWLEDGE = 0x18 };

static uint32_t bar0[BAR_SIZE / 4];
static uint8_t *bar2;
static uint64_t dma_count, raised;

int device_start(void) {
    int file = memfd_create("vfio-user-device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, BAR_SIZE)) return -1;
    bar2 = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bar2 == MAP_FAILED) return -1;
    device_reset();
    return file;
}

void device_reset(void) {
    memset(bar0, 0, sizeof bar0);
    bar0[0] = MAGIC;
}

bool device_access(unsigned bar, uint64_t offset, void *data, size_t size, bool writing) {
    if ((bar != 0 && bar != 2) || offset > BAR_SIZE || size > BAR_SIZE - offset) return false;
    uint8_t *at = (bar == 0 ? (uint8_t *)bar0 : bar2) + offset;
    memcpy(writing ? at : data, writing ? data : at, size);
    /* A device takes its interrupt down as soon as the driver says so. */
    if (bar0[ACKNOWLEDGE / 4]) bar0[ACKNOWLEDGE / 4] = bar0[STATUS / 4] = 0;
    return true;
}

void device_tick(bool is_bus_master) {
    uint32_t control = bar0[CONTROL / 4];
    if (!is_bus_master || !control) return;
    if (control & 1) {
        uint64_t address = (uint64_t)bar0[DMA / 4 + 1] << 32 | bar0[DMA / 4], next = dma_count + 1;
        if (dma_write(address, &next, sizeof next)) dma_count = next;
    }
    int kind = interrupt_kind();
    if (!(control & 2) || kind < 0) return;
    if (kind != INTX) {
        interrupt((unsigned)(raised++ % VECTORS));
    } else if (!bar0[STATUS / 4]) {
        bar0[STATUS / 4] = 1;
        interrupt(0);
        raised++;
    }
}

uint64_t device_dma_count(void) { return dma_count; }
