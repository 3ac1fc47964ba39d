// A bare x86-64 guest of the microvm board that counts, as ../counter does for riscv64, and measures its exits. Starts
// by the PVH protocol, needs neither firmware nor interrupts, and keeps this page for a program outside that maps the
// RAM:
//   0x400000  magic "BATONCNT"
//   0x400008  the counter, stored last
//   0x400010  the checksum if the counter is even, at 0x400018 if it is odd
//   0x400030  set from outside: 1 to measure gaps
//   0x400038  the longest time between two steps since that is 1, in ticks of the time-stamp counter; may be set to 0
//             from outside
//   0x400040  the time-stamp counter in the last step
//   0x400048  1 since the first instruction
//   0x400050  set from outside: reads of a device to make, in place of steps; 0 again when they are made
//   0x400058  set from outside: the port to read a byte of, or the address of a word above all ports
//   0x400060  ticks that the reads took
//   0x400068  what the last one read
#define PAGE ((volatile u64 *)0x400000UL)
#define MAGIC 0x544e434e4f544142UL
#define MULTIPLIER 6364136223846793005UL
#define INCREMENT 1442695040888963407UL

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

static inline u64 ticks(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static void read_device(u64 place, u64 reads) {
    u64 before = ticks(), value = 0;
    if (place < 0x10000) {
        for (u64 left = reads; left; left--) {
            u8 byte;
            __asm__ volatile("inb %w1, %0" : "=a"(byte) : "d"((u32)place));
            value = byte;
        }
    } else {
        for (u64 left = reads; left; left--) value = *(volatile u32 *)place;
    }
    PAGE[12] = ticks() - before;
    PAGE[13] = value;
    PAGE[10] = 0;
}

_Noreturn void run(void) {
    u64 count = 0, sum = 0, before = 0;
    PAGE[1] = 0;
    PAGE[2] = 0;
    PAGE[3] = 0;
    PAGE[0] = MAGIC;
    // What is in RAM must be what this CPU put there one step ago; the guest stands still otherwise.
    while (PAGE[1] == count) {
        count += 1;
        sum = sum * MULTIPLIER + INCREMENT;
        PAGE[2 + (count & 1)] = sum;
        PAGE[1] = count;
        u64 now = ticks();
        PAGE[8] = now;
        if (PAGE[6]) {
            if (before && now - before > PAGE[7]) PAGE[7] = now - before;
            before = now;
        } else {
            before = 0;
        }
        u64 reads = PAGE[10];
        if (reads) {
            read_device(PAGE[11], reads);
            before = 0;
        }
    }
    for (;;) __asm__ volatile("hlt");
}

// The entry is in protected mode without paging; long mode needs page tables, which map the first GiB and the devices
// below 4 GiB.
__asm__(".section .note.pvh, \"a\", @note\n"
        ".long 4, 4, 18\n"
        ".asciz \"Xen\"\n"
        ".long _start\n"
        ".section .text.entry, \"ax\"\n"
        ".code32\n"
        ".global _start\n"
        "_start:\n"
        "movl $1, 0x400048\n"
        "movl $level4, %eax\n"
        "movl %eax, %cr3\n"
        "movl %cr4, %eax\n"
        "orl $0x20, %eax\n"
        "movl %eax, %cr4\n"
        "movl $0xc0000080, %ecx\n"
        "rdmsr\n"
        "orl $0x100, %eax\n"
        "wrmsr\n"
        "movl %cr0, %eax\n"
        "orl $0x80000000, %eax\n"
        "movl %eax, %cr0\n"
        "lgdt segments_descriptor\n"
        "ljmp $8, $1f\n"
        ".code64\n"
        "1: movl $16, %eax\n"
        "movl %eax, %ds\n"
        "movl %eax, %es\n"
        "movl %eax, %ss\n"
        "movl $stack_top, %esp\n"
        "jmp run\n"
        ".section .data, \"aw\"\n"
        ".balign 4096\n"
        "level4: .quad level3 + 3\n"
        ".fill 511, 8, 0\n"
        "level3: .quad first_gib + 3, 0, 0, fourth_gib + 3\n"
        ".fill 508, 8, 0\n"
        ".macro pages from\n"
        ".set address, \\from\n"
        ".rept 512\n"
        ".quad address + 0x83\n"
        ".set address, address + 0x200000\n"
        ".endr\n"
        ".endm\n"
        "first_gib: pages 0\n"
        "fourth_gib: pages 0xc0000000\n"
        "segments: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff\n"
        "segments_descriptor: .word 23\n"
        ".long segments\n"
        ".text\n");
