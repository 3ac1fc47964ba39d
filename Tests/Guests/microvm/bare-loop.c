// The least that runs the guest beside this under KVM: bare-loop GUEST RAM BYTES, with the guest's ELF file and the file
// that is its RAM. Answers the accesses that the guest measures (a serial port's scratch register, a virtio-mmio
// device's magic number) and nothing else: what an exit costs without a VMM.
#include <elf.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define VIRTIO_MAGIC 0x74726976

static int check(int result, const char *what) {
    if (result >= 0) return result;
    perror(what);
    exit(1);
}

// Copies the loaded parts, and returns the entry that the PVH note names, the first thing in the file's first note.
static uint64_t load(const char *path, char *ram, uint64_t size) {
    static char file[1 << 20];
    int fd = check(open(path, O_RDONLY | O_CLOEXEC), path);
    int64_t length = check((int)read(fd, file, sizeof file), path);
    close(fd);
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file;
    const Elf64_Phdr *parts = (const Elf64_Phdr *)(file + elf->e_phoff);
    uint64_t entry = 0;
    for (int i = 0; i < elf->e_phnum; i++) {
        if ((int64_t)(parts[i].p_offset + parts[i].p_filesz) > length || parts[i].p_paddr + parts[i].p_filesz > size) {
            fputs("the guest does not fit\n", stderr);
            exit(1);
        }
        const char *bytes = file + parts[i].p_offset;
        if (parts[i].p_type == PT_LOAD) memcpy(ram + parts[i].p_paddr, bytes, parts[i].p_filesz);
        if (parts[i].p_type == PT_NOTE) entry = *(const uint32_t *)(bytes + sizeof(Elf64_Nhdr) + 4);
    }
    return entry;
}

// Protected mode without paging, as PVH has it.
static void set_registers(int cpu, uint64_t entry) {
    struct kvm_sregs special;
    check(ioctl(cpu, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_segment code = data;
    code.selector = 8;
    code.type = 11;
    special.cs = code;
    special.ds = special.es = special.fs = special.gs = special.ss = data;
    special.cr0 = 0x11;
    check(ioctl(cpu, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
    struct kvm_regs general = {.rip = entry, .rflags = 2};
    check(ioctl(cpu, KVM_SET_REGS, &general), "KVM_SET_REGS");
}

static void set_cpuid(int kvm, int cpu) {
    enum { entries = 256 };
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + entries * sizeof cpuid->entries[0]);
    if (!cpuid) exit(1);
    cpuid->nent = entries;
    check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
    check(ioctl(cpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
    free(cpuid);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    uint64_t size = strtoull(argv[3], NULL, 10);
    int file = check(open(argv[2], O_RDWR | O_CLOEXEC), argv[2]);
    char *ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (ram == MAP_FAILED) check(-1, "mmap");
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    struct kvm_userspace_memory_region region = {.memory_size = size, .userspace_addr = (uint64_t)ram};
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int cpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int state_size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, (size_t)state_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    if (run == MAP_FAILED) check(-1, "mmap");
    set_cpuid(kvm, cpu);
    set_registers(cpu, load(argv[1], ram, size));
    for (;;) {
        check(ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
        switch (run->exit_reason) {
        case KVM_EXIT_IO: *((uint8_t *)run + run->io.data_offset) = 0; break;
        case KVM_EXIT_MMIO:
            if (!run->mmio.is_write) memcpy(run->mmio.data, &(uint32_t){VIRTIO_MAGIC}, 4);
            break;
        default: fprintf(stderr, "exit %u\n", run->exit_reason); return 1;
        }
    }
}
