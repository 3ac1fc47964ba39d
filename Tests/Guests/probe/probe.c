// A guest of the machine microvm that finds out whether KVM executes what Linux needs: an emulated KVM may lack
// instructions that its CPUID announces, or be so slow that a kernel never gets to its end.
//
// Says what it is about to try, a line "baton-probe: ..." for each, and "baton-probe: end" at last. The last line that
// comes tells what does not work, and the time between "speed" and "end" how fast it is.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define SERIAL 0x3f8
#define LOCAL_APIC 0xfee00000UL
#define TIMER_VECTOR 0x40
#define TICKS 10
// Twice as many instructions (KVMProbe.swift).
#define SPEED_LOOPS 10000000UL

struct frame { u64 rip, cs, rflags, rsp, ss; };
struct gate { u16 low, selector, type, middle; u32 high, zero; };
struct table { u16 limit; u64 base; } __attribute__((packed));

static struct gate gates[256] __attribute__((aligned(16)));
static u8 state[4096] __attribute__((aligned(64)));
static volatile u32 undefined, faults, ticks;
static volatile u64 fault_address;

static void out(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static void write(const char *text) {
    while (*text) out(SERIAL, (u8)*text++);
}

static void step(const char *name) {
    write("baton-probe: ");
    write(name);
    write("\n");
}

static _Noreturn void stop(void) {
    for (;;) __asm__ volatile("cli; hlt");
}

static _Noreturn void fail(const char *what) {
    write("baton-probe: wrong: ");
    write(what);
    write("\n");
    stop();
}

// Returns EAX.
static u32 cpuid(u32 leaf, u32 *ebx, u32 *ecx, u32 *edx) {
    u32 eax = leaf;
    *ecx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(*ebx), "+c"(*ecx), "=d"(*edx));
    return eax;
}

static u64 read_register(u32 number) {
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (u64)high << 32 | low;
}

static void write_register(u32 number, u64 value) {
    __asm__ volatile("wrmsr" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(number) : "memory");
}

// ---- Exceptions and interrupts.

__attribute__((interrupt)) static void unexpected(volatile struct frame *frame) {
    (void)frame;
    fail("an exception or interrupt that nothing should raise");
}

__attribute__((interrupt)) static void undefined_instruction(volatile struct frame *frame) {
    undefined += 1;
    frame->rip += 2;  // UD2
}

// The access is of two bytes: mov (%rax), %al.
__attribute__((interrupt)) static void page_fault(volatile struct frame *frame, u64 code) {
    (void)code;
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    fault_address = address;
    faults += 1;
    frame->rip += 2;
}

static volatile u32 *apic(u32 offset) { return (volatile u32 *)(LOCAL_APIC + offset); }

__attribute__((interrupt)) static void tick(volatile struct frame *frame) {
    (void)frame;
    ticks += 1;
    *apic(0xb0) = 0;
}

static void set_gate(unsigned vector, void *handler) {
    u64 address = (u64)handler;
    gates[vector] = (struct gate){
        .low = (u16)address, .selector = 0x10, .type = 0x8e00, .middle = (u16)(address >> 16),
        .high = (u32)(address >> 32),
    };
}

static void exceptions(void) {
    for (unsigned vector = 0; vector < 256; vector++) set_gate(vector, (void *)unexpected);
    set_gate(6, (void *)undefined_instruction);
    set_gate(14, (void *)page_fault);
    set_gate(TIMER_VECTOR, (void *)tick);
    struct table table = {sizeof gates - 1, (u64)gates};
    __asm__ volatile("lidt %0" : : "m"(table));
    __asm__ volatile("ud2");
    // The last 2 MiB below 1 TiB: no page is there.
    u64 nowhere = 0xffffe00000UL;
    __asm__ volatile("mov (%%rax), %%al" : "+a"(nowhere) : : "memory");
    if (undefined != 1) fail("UD2 raises no exception");
    if (faults != 1 || fault_address != 0xffffe00000UL) fail("an access to no page raises no page fault");
}

// ---- What is tried.

static void registers(void) {
    u32 ebx, ecx, edx;
    cpuid(1, &ebx, &ecx, &edx);
    if (!(edx >> 5 & 1)) fail("CPUID announces no model-specific registers");
    if (!(read_register(0xc0000080) >> 10 & 1)) fail("EFER does not say that long mode is active");
    write_register(0xc0000102, 0xffff888000001234UL);  // KERNEL_GS_BASE
    if (read_register(0xc0000102) != 0xffff888000001234UL) fail("KERNEL_GS_BASE does not keep its value");
    __asm__ volatile("swapgs");
    if (read_register(0xc0000101) != 0xffff888000001234UL) fail("SWAPGS does not swap");
    __asm__ volatile("swapgs");
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
}

static void sse(void) {
    u64 a[2] __attribute__((aligned(16))) = {1, 2}, sum[2] __attribute__((aligned(16)));
    __asm__ volatile(
        "mov %%cr0, %%rax\n and $-13, %%rax\n or $2, %%rax\n mov %%rax, %%cr0\n"  // not EM and TS, but MP
        "mov %%cr4, %%rax\n or $0x600, %%rax\n mov %%rax, %%cr4\n"                // OSFXSR, OSXMMEXCPT
        "fninit\n"
        "movdqa %1, %%xmm0\n paddq %%xmm0, %%xmm0\n"
        "fxsave %2\n pxor %%xmm0, %%xmm0\n fxrstor %2\n"
        "movdqa %%xmm0, %0\n"
        : "=m"(sum), "+m"(a), "+m"(state) : : "rax", "memory");
    if (sum[0] != 2 || sum[1] != 4) fail("an SSE register does not keep its value");
}

static void avx(void) {
    u64 a[4] __attribute__((aligned(32))) = {1, 2, 3, 4}, sum[4] __attribute__((aligned(32)));
    __asm__ volatile(
        "mov %%cr4, %%rax\n or $0x40000, %%rax\n mov %%rax, %%cr4\n"  // OSXSAVE
        "xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov $7, %%eax\n xsetbv\n"
        "vmovaps %1, %%ymm0\n vaddps %%ymm0, %%ymm0, %%ymm1\n vpaddq %%xmm0, %%xmm0, %%xmm1\n"
        "xsave %2\n vzeroall\n mov $7, %%eax\n xrstor %2\n"
        "vmovaps %%ymm1, %0\n"
        : "=m"(sum), "+m"(a), "+m"(state) : : "rax", "rcx", "rdx", "memory");
    if (sum[0] != 2 || sum[1] != 4) fail("an AVX register does not keep its value");
}

static void bit_manipulation(void) {
    u64 result;
    __asm__ volatile("shlx %1, %2, %0" : "=r"(result) : "r"(4UL), "r"(3UL));
    if (result != 48) fail("SHLX calculates wrong");
}

// Into user mode by SYSRET, and back by SYSCALL.
static void user_mode(void) {
    write_register(0xc0000080, read_register(0xc0000080) | 1);               // EFER.SCE
    write_register(0xc0000081, (u64)0x10 << 32 | (u64)(0x20 - 8) << 48);     // STAR: SS 0x20 and CS 0x28 in user mode
    write_register(0xc0000084, 0x200);                                       // interrupts are off in SYSCALL
    u64 there = 0;
    u32 target = 0xc0000082;
    __asm__ volatile(
        "lea 2f(%%rip), %%rax\n mov %%rax, %%rdx\n shr $32, %%rdx\n mov %1, %%ecx\n wrmsr\n"  // LSTAR
        "mov %%rsp, %%r8\n"
        "lea 1f(%%rip), %%rcx\n mov $2, %%r11\n sysretq\n"
        "1: mov %%cs, %%eax\n syscall\n"
        "2: mov %%r8, %%rsp\n mov %%rax, %0\n"
        "mov %%ss, %%eax\n mov %%eax, %%ss\n"
        : "=r"(there) : "r"(target) : "rax", "rcx", "rdx", "r8", "r11", "memory");
    if (there != 0x2b) fail("SYSRET does not lead to user mode");
}

// An idle Linux waits like this.
static void timer(void) {
    *apic(0x80) = 0;                        // takes interrupts of all priorities
    *apic(0xf0) = 0x1ff;                    // on
    *apic(0x350) = 0x10000;                 // nothing from the PICs
    *apic(0x3e0) = 0xb;                     // divided by 1
    *apic(0x320) = 0x20000 | TIMER_VECTOR;  // again and again
    *apic(0x380) = 1000000;
    while (ticks < TICKS) __asm__ volatile("sti; hlt; cli");
    *apic(0x320) = 0x10000;
}

static void speed(void) {
    u64 count = SPEED_LOOPS;
    __asm__ volatile("1: dec %0\n jnz 1b" : "+r"(count));
}

_Noreturn void start(void) {
    u32 ebx, ecx, edx, features;
    step("CPUID and model-specific registers");
    registers();
    step("exceptions");
    exceptions();
    step("SSE");
    sse();
    cpuid(1, &ebx, &features, &edx);
    // XSAVE, AVX
    if ((features >> 26 & 5) == 5) {
        step("AVX, which CPUID announces");
        avx();
    }
    // A leaf that there is not may be answered as another one.
    u32 last = cpuid(0, &ebx, &ecx, &edx);
    cpuid(7, &ebx, &ecx, &edx);
    if (last >= 7 && ebx >> 8 & 1) {
        step("BMI2, which CPUID announces");
        bit_manipulation();
    }
    step("user mode");
    user_mode();
    step("the timer's interrupts");
    timer();
    step("speed");
    speed();
    step("end");
    stop();
}

// By the PVH protocol (Xen's docs/misc/pvh.pandoc): in 32-bit protected mode, without paging.
// 4 GiB are mapped as they are, for user mode as well.
__asm__(".pushsection .note.pvh, \"a\", @note\n"
        ".long 4, 4, 18\n.asciz \"Xen\"\n.long _start\n"
        ".popsection\n"
        ".pushsection .bss\n"
        ".balign 4096\n"
        "root: .skip 4096\nupper: .skip 4096\nlower: .skip 4 * 4096\n"
        ".skip 0x4000\nstack_top:\n"
        ".popsection\n"
        ".pushsection .data\n"
        ".balign 8\n"
        "segments: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff\n"
        "segment_table: .word . - segments - 1\n.long segments\n"
        ".popsection\n"
        ".pushsection .text\n"
        ".code32\n"
        ".global _start\n"
        "_start:\n"
        "mov $stack_top, %esp\n"
        "movl $upper + 7, root\n"
        "mov $lower + 7, %eax\nxor %ecx, %ecx\n"
        "1: mov %eax, upper(, %ecx, 8)\n"
        "add $4096, %eax\ninc %ecx\ncmp $4, %ecx\njne 1b\n"
        "mov $0x87, %eax\nxor %ecx, %ecx\n"
        "2: mov %eax, lower(, %ecx, 8)\n"
        "add $0x200000, %eax\ninc %ecx\ncmp $2048, %ecx\njne 2b\n"
        "mov $0x20, %eax\nmov %eax, %cr4\n"
        "mov $root, %eax\nmov %eax, %cr3\n"
        "mov $0xc0000080, %ecx\nrdmsr\nor $0x100, %eax\nwrmsr\n"
        "mov $0x80000011, %eax\nmov %eax, %cr0\n"
        "lgdt segment_table\n"
        "ljmp $0x10, $3f\n"
        ".code64\n"
        "3: mov $0x18, %eax\nmov %eax, %ss\nmov %eax, %ds\nmov %eax, %es\n"
        "call start\n"
        ".popsection\n");
