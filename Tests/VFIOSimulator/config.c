/* Configuration space and expansion ROM.
 *
 *   0x40  power management
 *   0x50  MSI-X
 *   0x60  MSI: 64 bits, no masks
 *   0x70  PCI Express endpoint, version 2
 *   0x100 AER, 0x148 ARI, 0x150 serial number, 0x160 SR-IOV, 0x1a0 resizable
 *         BAR, 0x1b0 vendor specific, whose doubleword at 8 can be written */
#include <linux/pci_regs.h>
#include <string.h>

#include "simulator.h"

static uint8_t *config;

static void put16(unsigned at, uint16_t value) { memcpy(config + at, &value, 2); }
static void put32(unsigned at, uint32_t value) { memcpy(config + at, &value, 4); }
static void extended(unsigned at, unsigned id, unsigned version, unsigned next) {
    put32(at, id | version << 16 | next << 20);
}

uint64_t config_size(void) {
    if (settings.lies_config_size) return 100;
    return settings.lacks_express ? 256 : 4096;
}

static void express(unsigned index) {
    config[0x61] = 0x70;
    put16(0x70, PCI_CAP_ID_EXP);
    put16(0x72, 2 | (settings.lies_legacy_endpoint ? PCI_EXP_TYPE_LEG_END : PCI_EXP_TYPE_ENDPOINT) << 4);
    put32(0x74, settings.lacks_flr ? 0 : PCI_EXP_DEVCAP_FLR);
    put32(0x7c, 0x00412811); /* link */
    put32(0x80, 0x10110000);
    put32(0x9c, 0x0000000e); /* link 2 */
    if (settings.lies_ari_first) extended(0x100, PCI_EXT_CAP_ID_ARI, 1, 0x150);
    else extended(0x100, PCI_EXT_CAP_ID_ERR, 2, 0x148);
    put32(0x104, 0xdeadbeef);
    extended(0x148, PCI_EXT_CAP_ID_ARI, 1, 0x150);
    put32(0x14c, 0xffffffff);
    extended(0x150, PCI_EXT_CAP_ID_DSN, 1, 0x160);
    put32(0x154, 0x55667788);
    put32(0x158, 0x11223344 + index);
    extended(0x160, PCI_EXT_CAP_ID_SRIOV, 1, 0x1a0);
    for (unsigned at = 0x164; at < 0x1a0; at += 4) put32(at, 0x5a5a5a5a);
    /* BAR 2 could be 1 to 128 MiB, and is 2 MiB. */
    extended(0x1a0, PCI_EXT_CAP_ID_REBAR, 1, 0x1b0);
    put32(0x1a4, 0x00000ff0);
    put32(0x1a8, 2 | 1 << 5 | 1 << 8);
    extended(0x1b0, PCI_EXT_CAP_ID_VNDR, 1, settings.lies_ext_loop ? 0x150 : settings.lies_ext_wild ? 0x0fc : 0);
    put32(0x1b4, 0x00c00001);
}

void config_start(struct device *device) {
    config = device->config;
    put32(0x00, 0x56491234);
    put16(0x06, 0x10);
    put32(0x08, 0xff000001);
    put32(0x18, 0x0c); /* BAR 2: 64 bits, prefetchable */
    put32(0x2c, 0x00011234);
    config[0x34] = 0x40;
    config[0x3d] = 1;
    put16(0x40, 0x5001);
    put16(0x42, 0x0003);
    put16(0x44, settings.lacks_flr ? 0 : PCI_PM_CTRL_NO_SOFT_RESET);
    put16(0x50, 0x6011);
    put16(0x52, VECTORS - 1);
    put32(0x54, settings.lies_msix_place ? 0xfff2 : 2);
    put32(0x58, 0x8002);
    put16(0x60, 0x0005);
    put16(0x62, 0x0080 | 2 << 1);
    if (!settings.lacks_express) express(device->index);
}

void rom_start(uint8_t *rom, size_t size, unsigned index) {
    for (size_t i = 0; i < size; i++) rom[i] = (uint8_t)(i * 7 + index);
    rom[0] = 0x55;
    rom[1] = 0xaa;
    rom[2] = (uint8_t)(size / 512);
}
