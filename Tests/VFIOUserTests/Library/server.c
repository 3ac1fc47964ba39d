/* libvfio-user-server [--ask] SOCKET: the device of Tests/VFIOUserServer on
 * libvfio-user, which is built when the tests run. Everything that the library
 * has to say goes to standard error.
 *   --ask   does DMA by message, not by mapping guest memory */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <signal.h>
#include <unistd.h>

#include "device.h"
#include "libvfio-user.h"

static vfu_ctx_t *context;
static bool asks;
static int kind = -1;

static void log_line(vfu_ctx_t *ctx, int level, const char *text) {
    (void)ctx;
    (void)level;
    /* Messages of the set-up of interrupts say which kind it is. */
    if (strstr(text, "setting IRQ INTx")) kind = INTX;
    if (strstr(text, "setting IRQ MSI ")) kind = MSI;
    if (strstr(text, "setting IRQ MSI-X")) kind = MSIX;
    if (strstr(text, "disabling IRQ")) kind = -1;
    fprintf(stderr, "%s\n", text);
}

static ssize_t access_bar(unsigned bar, char *data, size_t count, loff_t offset, bool writing) {
    if (device_access(bar, (uint64_t)offset, data, count, writing)) return (ssize_t)count;
    errno = EINVAL;
    return -1;
}
static ssize_t access_bar0(vfu_ctx_t *ctx, char *data, size_t count, loff_t offset, bool writing) {
    (void)ctx;
    return access_bar(0, data, count, offset, writing);
}
static ssize_t access_bar2(vfu_ctx_t *ctx, char *data, size_t count, loff_t offset, bool writing) {
    (void)ctx;
    return access_bar(2, data, count, offset, writing);
}

static int reset(vfu_ctx_t *ctx, vfu_reset_type_t type) {
    (void)ctx;
    fprintf(stderr, "reset %d\n", (int)type);
    device_reset();
    return 0;
}

static void dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info) {
    (void)ctx;
    fprintf(stderr, "dma_register %p %#zx\n", info->iova.iov_base, info->iova.iov_len);
}
static void dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info) {
    (void)ctx;
    fprintf(stderr, "dma_unregister %p\n", info->iova.iov_base);
}

bool dma_write(uint64_t address, const void *data, size_t size) {
    dma_sg_t *list = alloca(dma_sg_size());
    struct iovec place;
    if (vfu_addr_to_sgl(context, (vfu_dma_addr_t)address, size, list, 1, PROT_WRITE) != 1) return false;
    if (asks || vfu_sgl_get(context, list, &place, 1, 0)) return vfu_sgl_write(context, list, 1, (void *)data, 0) == 0;
    *(volatile uint64_t *)place.iov_base = *(const uint64_t *)data;
    vfu_sgl_put(context, list, &place, 1);
    return true;
}

int interrupt_kind(void) { return kind; }
void interrupt(unsigned vector) { (void)vfu_irq_trigger(context, vector); }

static bool set_up(const char *path, int file) {
    struct iovec mapped = {(void *)(uintptr_t)MAPPED_FROM, MAPPED_SIZE};
    struct pmcap power = {.hdr.id = PCI_CAP_ID_PM, .pc.vs = 3};
    struct msixcap msix = {.hdr.id = PCI_CAP_ID_MSIX, .mxc.ts = VECTORS - 1, .mtab.tbir = 2, .mpba = {.pbir = 2, .pbao = 0x1000}};
    struct msicap msi = {.hdr.id = PCI_CAP_ID_MSI, .mc = {.mmc = 2, .c64 = 1}};
    const int memory = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;
    context = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    if (!context || vfu_setup_log(context, log_line, 7)
        || vfu_pci_init(context, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0))
        return false;
    vfu_pci_set_id(context, 0x1234, 0x5649, 0x1234, 1);
    vfu_pci_set_class(context, 0xff, 0, 0);
    return vfu_pci_add_capability(context, 0, 0, &power) >= 0 && vfu_pci_add_capability(context, 0, 0, &msix) >= 0
        && vfu_pci_add_capability(context, 0, 0, &msi) >= 0
        && !vfu_setup_region(context, 0, BAR_SIZE, access_bar0, memory, NULL, 0, -1, 0)
        && !vfu_setup_region(
            context, 2, BAR_SIZE, access_bar2, memory | VFU_REGION_FLAG_64_BITS | VFU_REGION_FLAG_PREFETCH, &mapped, 1,
            file, 0)
        && !vfu_setup_device_nr_irqs(context, VFU_DEV_INTX_IRQ, 1)
        && !vfu_setup_device_nr_irqs(context, VFU_DEV_MSI_IRQ, VECTORS)
        && !vfu_setup_device_nr_irqs(context, VFU_DEV_MSIX_IRQ, VECTORS)
        && !vfu_setup_device_dma(context, LIBVFIO_USER_MAX_DMA_REGIONS, dma_register, dma_unregister)
        && !vfu_setup_device_reset_cb(context, reset) && !vfu_realize_ctx(context);
}

int main(int count, char **arguments) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    asks = count > 2 && !strcmp(arguments[1], "--ask");
    int file = device_start(), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec period = {{0, 1000000}, {0, 1000000}};
    if (file < 0 || timer < 0 || timerfd_settime(timer, 0, &period, NULL) || !set_up(arguments[count - 1], file)) {
        perror("libvfio-user-server");
        return 1;
    }
    for (bool attached = false;;) {
        struct pollfd states[] = {{timer, POLLIN, 0}, {vfu_get_poll_fd(context), POLLIN, 0}};
        if (poll(states, 2, -1) < 0) continue;
        if (states[1].revents) {
            if (!attached) {
                attached = vfu_attach_ctx(context) == 0;
                if (attached) fprintf(stderr, "attached\n");
            } else if (vfu_run_ctx(context) < 0 && errno != EAGAIN && errno != EBUSY) {
                /* It is not said again what the library has said of it. */
                attached = false;
                kind = -1;
            }
        }
        uint64_t ticks;
        if (states[0].revents && read(timer, &ticks, sizeof ticks) > 0 && attached)
            device_tick(vfu_pci_get_config_space(context)->hdr.cmd.bme);
    }
}
