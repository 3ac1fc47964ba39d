// An x86-64 guest of the microvm board whose CPUs read and write ports, registers of devices, PCI's configuration space
// and what lies between, at random and all at once. Starts by the PVH protocol, and keeps this page for a program outside
// that maps the RAM:
//   0x400000  a seed, set from outside before the start
//   0x400008  CPUs, set from outside before the start
//   0x400048  1 since the first instruction
//   0x400080  how many accesses each CPU has made, 8 bytes each
#define PAGE ((volatile u64 *)0x400000UL)
#define CPUS 16
#define APIC ((volatile u32 *)0xfee00000UL)
#define TRAMPOLINE 0x8000

#include "start.h"

static u64 state[CPUS];

static u64 next(u64 cpu) {
    u64 x = state[cpu];
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return state[cpu] = x;
}

// Where there is something: a place, and bytes.
static const struct { u32 start, size; } ports[] = {
    {0x20, 2}, {0x40, 4}, {0x60, 5}, {0x70, 2}, {0x80, 1}, {0xa0, 2}, {0x3f8, 8}, {0x402, 1}, {0x4d0, 2}, {0x501, 1},
    {0x510, 12}, {0xcf8, 8}, {0, 0x10000},
};
// The local APICs are left out: a CPU that another resets there does nothing more. So is the GED's sleep register.
static const struct { u32 start, size; } registers[] = {
    {0xfeb00000, 24 * 512}, {0xfeb00000, 24 * 512}, {0xfeb00000, 24 * 512}, {0xfea00000, 4}, {0xfea00201, 1},
    {0xe0000000, 0x100000}, {0xe0000000, 0x100000}, {0xc0000000, 0x100000}, {0xfec00000, 0x20}, {0xfec10000, 0x20},
    {0xc0000000, 0x3e000000}, {0xff000000, 0x1000000},
};
#define COUNT(list) (sizeof list / sizeof *list)

// Values as drivers write them, and others.
static u64 value(u64 cpu) {
    u64 x = next(cpu);
    switch (x & 7) {
    case 0: return x >> 8 & 1;
    case 1: return x >> 8 & 0xff;
    case 2: return 1UL << (x >> 8 & 63);
    case 3: return -(x >> 8 & 15);
    case 4: return (x >> 8) % (64UL << 20);
    case 5: return 0xc0000000 | (x >> 8 & 0x3fffffff);
    default: return x;
    }
}

static void use_port(u64 cpu) {
    static u8 buffers[CPUS][256];
    u64 x = next(cpu), place = x % COUNT(ports);
    u16 port = ports[place].start + (x >> 8) % ports[place].size;
    u64 data = value(cpu), count = x >> 40 & 31;
    void *buffer = buffers[cpu];
    switch (x >> 24 & 7) {
    case 0: __asm__ volatile("outb %b0, %w1" : : "a"(data), "d"(port)); break;
    case 1: __asm__ volatile("outw %w0, %w1" : : "a"(data), "d"(port)); break;
    case 2: __asm__ volatile("outl %k0, %w1" : : "a"((u32)data), "d"(port)); break;
    case 3: __asm__ volatile("inb %w1, %b0" : "=a"(data) : "d"(port)); break;
    case 4: __asm__ volatile("inw %w1, %w0" : "=a"(data) : "d"(port)); break;
    case 5: __asm__ volatile("inl %w1, %k0" : "=a"(data) : "d"(port)); break;
    case 6: __asm__ volatile("rep outsb" : "+S"(buffer), "+c"(count) : "d"(port) : "memory"); break;
    default: __asm__ volatile("rep insl" : "+D"(buffer), "+c"(count) : "d"(port) : "memory"); break;
    }
}

static void use_memory(u64 cpu) {
    u64 x = next(cpu), place = x % COUNT(registers);
    u64 address = registers[place].start + (x >> 8) % registers[place].size;
    u64 width = x >> 48 & 3, data = value(cpu);
    // Most of what drivers do is aligned.
    if (x >> 50 & 7) address &= -(1UL << width);
    // An I/O APIC's interrupt that resets a CPU, or is none that this guest could take: fixed ones are held back.
    if (registers[place].start >> 20 == 0xfec) data &= ~0x700UL;
    switch (x >> 55 & 1 ? width : width + 4) {
    case 0: *(volatile u8 *)address = data; break;
    case 1: *(volatile u16 *)address = data; break;
    case 2: *(volatile u32 *)address = data; break;
    case 3: *(volatile u64 *)address = data; break;
    case 4: (void)*(volatile u8 *)address; break;
    case 5: (void)*(volatile u16 *)address; break;
    case 6: (void)*(volatile u32 *)address; break;
    default: (void)*(volatile u64 *)address; break;
    }
}

extern const u8 trampoline[], trampoline_end[];

static void start_others(void) {
    for (const u8 *from = trampoline; from < trampoline_end; from++) {
        ((volatile u8 *)TRAMPOLINE)[from - trampoline] = *from;
    }
    APIC[0xf0 / 4] = 0x1ff;
    // INIT and the address of the start, to all but this one.
    APIC[0x300 / 4] = 0xc4500;
    APIC[0x300 / 4] = 0xc4600 | TRAMPOLINE >> 12;
}

_Noreturn void run(u64 cpu) {
    if (cpu == 0 && PAGE[1] > 1) start_others();
    cpu %= CPUS;
    state[cpu] = PAGE[0] * 0x9e3779b97f4a7c15 + PAGE[16 + cpu] + cpu + 1;
    for (;;) {
        if (next(cpu) & 1) use_port(cpu);
        else use_memory(cpu);
        PAGE[16 + cpu]++;
    }
}

// Where CPUs but the first begin, in real mode; long mode needs no step between.
__asm__(".data\n"
        ".code16\n"
        ".global trampoline, trampoline_end\n"
        "trampoline:\n"
        "cli\n"
        "xorw %ax, %ax\n"
        "movw %ax, %ds\n"
        "movl $level4, %eax\n"
        "movl %eax, %cr3\n"
        "movl $0x20, %eax\n"
        "movl %eax, %cr4\n"
        "movl $0xc0000080, %ecx\n"
        "rdmsr\n"
        "orl $0x100, %eax\n"
        "wrmsr\n"
        "lgdtl 0x8000 + descriptor - trampoline\n"
        "movl %cr0, %eax\n"
        "orl $0x80000001, %eax\n"
        "movl %eax, %cr0\n"
        "ljmpl $8, $others\n"
        "descriptor: .word 23\n"
        ".long segments\n"
        "trampoline_end:\n"
        "number: .quad 0\n"
        ".balign 16\n"
        "stacks: .fill 16 * 4096, 1, 0\n"
        ".text\n"
        ".code64\n"
        "others: movl $16, %eax\n"
        "movl %eax, %ds\n"
        "movl %eax, %es\n"
        "movl %eax, %ss\n"
        "movl $1, %edi\n"
        "lock xaddq %rdi, number\n"
        "incq %rdi\n"
        "movq %rdi, %rax\n"
        "andl $15, %eax\n"
        "shll $12, %eax\n"
        "leaq stacks + 4096(%rax), %rsp\n"
        "jmp run\n");
