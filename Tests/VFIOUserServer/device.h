/* The device of a vfio-user server: two BARs; it counts into guest memory and
 * interrupts the guest for ever, once the guest has switched that on. The same
 * as that of Tests/VFIOSimulator, with the same guest.
 *
 * BAR 0 (64 KiB), registers:
 *   0x00  magic
 *   0x08  bus address of a page: the count goes to its first doubleword
 *   0x10  control: 1 counts, 2 interrupts
 *   0x14  INTx is asserted
 *   0x18  the driver writes 1 to take INTx down
 * BAR 2 (64 KiB, 64 bits): MSI-X table, memory from 0x1000, pending bits at
 * 0x8000. Its pages from 0x1000 to 0x8000 can be mapped. */
#ifndef VFIO_USER_DEVICE_H
#define VFIO_USER_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BAR_SIZE = 0x10000, VECTORS = 4, MAPPED_FROM = 0x1000, MAPPED_SIZE = 0x7000 };
enum { INTX, MSI, MSIX };

/* Makes it; the descriptor is that of BAR 2. */
int device_start(void);
void device_reset(void);
/* Accesses a BAR. Returns whether there is something. */
bool device_access(unsigned bar, uint64_t offset, void *data, size_t size, bool writing);
/* Lets it work; called a thousand times a second. */
void device_tick(bool is_bus_master);
uint64_t device_dma_count(void);

/* What the server has: */
/* Writes to guest memory. */
bool dma_write(uint64_t address, const void *data, size_t size);
/* Which kind of interrupt is in use, or -1. */
int interrupt_kind(void);
void interrupt(unsigned vector);

#endif
