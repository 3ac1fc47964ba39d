// How an x86-64 guest of this directory comes to `run`: by the PVH protocol, and by long mode, in which the first GiB and
// the devices below 4 GiB are mapped. The first word that it stores is a 1 at 0x400048.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

// What the guest does, on the stack of the CPU: 0 is the first.
_Noreturn void run(u64 cpu);

// The entry is in protected mode without paging.
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
        "xorl %edi, %edi\n"
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
