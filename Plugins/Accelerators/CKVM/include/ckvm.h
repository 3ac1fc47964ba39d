#ifndef CKVM_H
#define CKVM_H

/* What Swift cannot import of Linux' KVM: request numbers, variadic ioctl(2), the union of struct kvm_run. */

#include <errno.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Each returns what ioctl(2) does, or a negative errno value. */
int ckvm_ioctl(int fd, unsigned long request, void *argument);
int ckvm_ioctl_value(int fd, unsigned long request, unsigned long value);

/* KVM_RUN of a vCPU. */
int ckvm_run(int fd);

/* Goes as far as to the guest's door and back, as when a signal comes: what is pending in the vCPU, such as the
 * interrupt of a timer, is taken in. Of the vCPU's thread, with immediate_exit set, as which it is left. Returns
 * -EINTR, or another negative errno value. */
int ckvm_enter_and_leave(int fd, struct kvm_run *run);

static const unsigned long CKVM_GET_API_VERSION = KVM_GET_API_VERSION;
static const unsigned long CKVM_CREATE_VM = KVM_CREATE_VM;
static const unsigned long CKVM_CHECK_EXTENSION = KVM_CHECK_EXTENSION;
static const unsigned long CKVM_GET_VCPU_MMAP_SIZE = KVM_GET_VCPU_MMAP_SIZE;
static const unsigned long CKVM_GET_SUPPORTED_CPUID = KVM_GET_SUPPORTED_CPUID;
static const unsigned long CKVM_GET_MSR_INDEX_LIST = KVM_GET_MSR_INDEX_LIST;
static const unsigned long CKVM_SET_USER_MEMORY_REGION = KVM_SET_USER_MEMORY_REGION;
static const unsigned long CKVM_SET_TSS_ADDR = KVM_SET_TSS_ADDR;
static const unsigned long CKVM_SET_IDENTITY_MAP_ADDR = KVM_SET_IDENTITY_MAP_ADDR;
static const unsigned long CKVM_ENABLE_CAP = KVM_ENABLE_CAP;
static const unsigned long CKVM_CREATE_VCPU = KVM_CREATE_VCPU;
static const unsigned long CKVM_CREATE_IRQCHIP = KVM_CREATE_IRQCHIP;
static const unsigned long CKVM_GET_IRQCHIP = KVM_GET_IRQCHIP;
static const unsigned long CKVM_SET_IRQCHIP = KVM_SET_IRQCHIP;
static const unsigned long CKVM_CREATE_PIT2 = KVM_CREATE_PIT2;
static const unsigned long CKVM_GET_PIT2 = KVM_GET_PIT2;
static const unsigned long CKVM_SET_PIT2 = KVM_SET_PIT2;
static const unsigned long CKVM_GET_CLOCK = KVM_GET_CLOCK;
static const unsigned long CKVM_SET_CLOCK = KVM_SET_CLOCK;
static const unsigned long CKVM_KVMCLOCK_CTRL = KVM_KVMCLOCK_CTRL;
static const unsigned long CKVM_NMI = KVM_NMI;
static const unsigned long CKVM_IRQ_LINE = KVM_IRQ_LINE;
static const unsigned long CKVM_SIGNAL_MSI = KVM_SIGNAL_MSI;
static const unsigned long CKVM_SET_GSI_ROUTING = KVM_SET_GSI_ROUTING;
static const unsigned long CKVM_IRQFD = KVM_IRQFD;
static const unsigned long CKVM_IOEVENTFD = KVM_IOEVENTFD;
static const unsigned long CKVM_SET_CPUID2 = KVM_SET_CPUID2;
static const unsigned long CKVM_GET_REGS = KVM_GET_REGS;
static const unsigned long CKVM_SET_REGS = KVM_SET_REGS;
static const unsigned long CKVM_GET_SREGS = KVM_GET_SREGS;
static const unsigned long CKVM_SET_SREGS = KVM_SET_SREGS;
static const unsigned long CKVM_GET_SREGS2 = KVM_GET_SREGS2;
static const unsigned long CKVM_SET_SREGS2 = KVM_SET_SREGS2;
static const unsigned long CKVM_GET_XSAVE = KVM_GET_XSAVE;
static const unsigned long CKVM_GET_XSAVE2 = KVM_GET_XSAVE2;
static const unsigned long CKVM_SET_XSAVE = KVM_SET_XSAVE;
static const unsigned long CKVM_GET_XCRS = KVM_GET_XCRS;
static const unsigned long CKVM_SET_XCRS = KVM_SET_XCRS;
static const unsigned long CKVM_GET_MSRS = KVM_GET_MSRS;
static const unsigned long CKVM_SET_MSRS = KVM_SET_MSRS;
static const unsigned long CKVM_GET_VCPU_EVENTS = KVM_GET_VCPU_EVENTS;
static const unsigned long CKVM_SET_VCPU_EVENTS = KVM_SET_VCPU_EVENTS;
static const unsigned long CKVM_GET_DEBUGREGS = KVM_GET_DEBUGREGS;
static const unsigned long CKVM_SET_DEBUGREGS = KVM_SET_DEBUGREGS;
static const unsigned long CKVM_GET_LAPIC = KVM_GET_LAPIC;
static const unsigned long CKVM_SET_LAPIC = KVM_SET_LAPIC;
static const unsigned long CKVM_GET_MP_STATE = KVM_GET_MP_STATE;
static const unsigned long CKVM_SET_MP_STATE = KVM_SET_MP_STATE;
static const unsigned long CKVM_GET_TSC_KHZ = KVM_GET_TSC_KHZ;
static const unsigned long CKVM_SET_TSC_KHZ = KVM_SET_TSC_KHZ;
static const unsigned long CKVM_X86_SETUP_MCE = KVM_X86_SETUP_MCE;
static const unsigned long CKVM_CREATE_DEVICE = KVM_CREATE_DEVICE;
static const unsigned long CKVM_HAS_DEVICE_ATTR = KVM_HAS_DEVICE_ATTR;
static const unsigned long CKVM_GET_DEVICE_ATTR = KVM_GET_DEVICE_ATTR;
static const unsigned long CKVM_SET_DEVICE_ATTR = KVM_SET_DEVICE_ATTR;

/* ---- struct kvm_run. */

static inline uint32_t ckvm_exit_reason(const struct kvm_run *run) { return run->exit_reason; }

/* Whether the vCPU is to leave KVM_RUN at once, and not enter the guest; any thread may ask for it. */
static inline void ckvm_set_immediate_exit(struct kvm_run *run, int on) {
    __atomic_store_n(&run->immediate_exit, (uint8_t)on, __ATOMIC_SEQ_CST);
}
static inline int ckvm_immediate_exit(const struct kvm_run *run) {
    return __atomic_load_n(&run->immediate_exit, __ATOMIC_SEQ_CST);
}

/* A counter of one thread, which others read. */
static inline void ckvm_count(uint64_t *counter) {
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}
static inline uint64_t ckvm_counted(const uint64_t *counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }

/* KVM_EXIT_IO. */
struct ckvm_io {
    uint8_t is_write, size;
    uint16_t port;
    uint32_t count;
    uint64_t data_offset; /* from the beginning of struct kvm_run */
};
static inline struct ckvm_io ckvm_exit_io(const struct kvm_run *run) {
    struct ckvm_io io = {run->io.direction == KVM_EXIT_IO_OUT, run->io.size, run->io.port, run->io.count,
                         run->io.data_offset};
    return io;
}

/* KVM_EXIT_MMIO. */
struct ckvm_mmio {
    uint64_t address, value;
    uint32_t length;
    uint8_t is_write;
};
static inline struct ckvm_mmio ckvm_exit_mmio(const struct kvm_run *run) {
    struct ckvm_mmio mmio = {run->mmio.phys_addr, 0, run->mmio.len, run->mmio.is_write};
    memcpy(&mmio.value, run->mmio.data, sizeof mmio.value);
    return mmio;
}
static inline void ckvm_set_mmio_value(struct kvm_run *run, uint64_t value) {
    memcpy(run->mmio.data, &value, sizeof value);
}

/* KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_MEMORY_FAULT. */
static inline uint32_t ckvm_system_event(const struct kvm_run *run) { return run->system_event.type; }
static inline uint32_t ckvm_suberror(const struct kvm_run *run) { return run->internal.suberror; }
static inline uint32_t ckvm_error_words(const struct kvm_run *run) { return run->internal.ndata; }
static inline uint64_t ckvm_error_word(const struct kvm_run *run, uint32_t index) {
    return index < 16 ? run->internal.data[index] : 0;
}
static inline uint64_t ckvm_entry_failure(const struct kvm_run *run) {
    return run->fail_entry.hardware_entry_failure_reason;
}

/* ---- Messages in a routing table. */

static inline struct kvm_irq_routing_entry ckvm_message_route(uint32_t gsi, uint64_t address, uint32_t data) {
    struct kvm_irq_routing_entry entry = {.gsi = gsi, .type = KVM_IRQ_ROUTING_MSI};
    entry.u.msi.address_lo = (uint32_t)address;
    entry.u.msi.address_hi = (uint32_t)(address >> 32);
    entry.u.msi.data = data;
    return entry;
}
static inline struct kvm_irq_routing_entry ckvm_pin_route(uint32_t gsi, uint32_t chip, uint32_t pin) {
    struct kvm_irq_routing_entry entry = {.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP};
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    return entry;
}

/* ---- KVM_CREATE_VM and what else has a name that depends on the header's version. */

enum {
    CKVM_SYSTEM_EVENT_SHUTDOWN = 1,
    CKVM_SYSTEM_EVENT_RESET = 2,
    CKVM_SYSTEM_EVENT_CRASH = 3,
    CKVM_EXIT_MEMORY_FAULT = 39,
    CKVM_CAP_PMU_CAPABILITY = 212,
    CKVM_CAP_TRIPLE_FAULT_EVENT = 218,
};

/* ---- The host. */

/* A descriptor, which is close-on-exec, or a negative errno value. */
int ckvm_open(const char *path);
void ckvm_close(int fd);
/* NULL on failure. */
struct kvm_run *ckvm_map_run(int vcpu, size_t size);
void ckvm_unmap_run(struct kvm_run *run, size_t size);

struct ckvm_cpuid_result {
    uint32_t eax, ebx, ecx, edx;
};
struct ckvm_cpuid_result ckvm_cpuid(uint32_t leaf, uint32_t subleaf);
/* The time-stamp counter, and CLOCK_MONOTONIC_RAW in nanoseconds. */
uint64_t ckvm_rdtsc(void);
int64_t ckvm_raw_time(void);

/* The beginning of a small file as a string, and the other way round. Each returns an errno value. */
int ckvm_read_text(const char *path, char *text, size_t size);
int ckvm_write_text(const char *path, const char *text);

/* ---- Threads. */

/* The signal that takes a vCPU's thread out of KVM_RUN. Its handler does nothing. */
int ckvm_kick_signal(void);
/* Installs the handler, and blocks the signal in the calling thread and those that it makes. */
int ckvm_prepare_signals(void);
/* Starts a thread that takes that signal and no other. Returns an errno value. */
int ckvm_start_thread(pthread_t *thread, void *(*body)(void *), void *argument);
/* Names the calling thread; 15 bytes of it count. */
void ckvm_name_thread(const char *name);
int ckvm_kick(pthread_t thread);
int ckvm_thread_id(void);

/* Where and how the scheduler runs a thread. */
struct ckvm_scheduling {
    int32_t policy, priority, nice;
    uint64_t runtime, deadline, period; /* nanoseconds, of SCHED_DEADLINE; else 0 */
    uint32_t affinity_length; /* bytes in use */
    uint8_t affinity[1024];
};
/* Each returns an errno value. */
int ckvm_get_scheduling(int thread, struct ckvm_scheduling *scheduling);
int ckvm_set_scheduling(int thread, const struct ckvm_scheduling *scheduling);
/* Of what `ckvm_get_scheduling` has filled. */
int ckvm_is_same_scheduling(const struct ckvm_scheduling *one, const struct ckvm_scheduling *other);

#endif
