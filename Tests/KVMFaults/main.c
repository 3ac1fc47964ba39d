/* kvm-faults [OPTION…] -- COMMAND…
 *   --capability NUMBER=N    what KVM_CHECK_EXTENSION answers for one; 0: it is lacking
 *   --answer REQUEST=N       a request, which the kernel does not get; N below 0 is an errno
 *   --exit REASON[:SUBERROR] KVM_RUN comes back at once with this exit
 *   --when FILE              none of it before there is the file
 *   --log FILE               a line for each time
 *
 * Runs COMMAND on the host's KVM, and has that answer as a kernel that is older, lacks something, fails or meets what it
 * cannot run: its ioctls are looked at by another process (seccomp user notification), and those of what it executes and
 * forks too. Ends with COMMAND's status when all of them have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "call-notices.h"

#define REQUEST(name) {#name, (unsigned)name}
static const struct { const char *name; unsigned number; } requests[] = {
    REQUEST(KVM_GET_API_VERSION), REQUEST(KVM_CREATE_VM), REQUEST(KVM_GET_VCPU_MMAP_SIZE),
    REQUEST(KVM_GET_SUPPORTED_CPUID), REQUEST(KVM_GET_MSR_INDEX_LIST), REQUEST(KVM_SET_USER_MEMORY_REGION),
    REQUEST(KVM_SET_TSS_ADDR), REQUEST(KVM_SET_IDENTITY_MAP_ADDR), REQUEST(KVM_CREATE_VCPU),
    REQUEST(KVM_CREATE_IRQCHIP), REQUEST(KVM_GET_IRQCHIP), REQUEST(KVM_SET_IRQCHIP), REQUEST(KVM_CREATE_PIT2),
    REQUEST(KVM_GET_PIT2), REQUEST(KVM_SET_PIT2), REQUEST(KVM_GET_CLOCK), REQUEST(KVM_SET_CLOCK),
    REQUEST(KVM_SET_GSI_ROUTING), REQUEST(KVM_IRQFD), REQUEST(KVM_IOEVENTFD), REQUEST(KVM_RUN),
    REQUEST(KVM_SET_CPUID2), REQUEST(KVM_GET_REGS), REQUEST(KVM_SET_REGS), REQUEST(KVM_GET_SREGS),
    REQUEST(KVM_SET_SREGS), REQUEST(KVM_GET_SREGS2), REQUEST(KVM_SET_SREGS2), REQUEST(KVM_GET_XSAVE),
    REQUEST(KVM_GET_XSAVE2), REQUEST(KVM_SET_XSAVE), REQUEST(KVM_GET_XCRS), REQUEST(KVM_SET_XCRS),
    REQUEST(KVM_GET_MSRS), REQUEST(KVM_SET_MSRS), REQUEST(KVM_GET_VCPU_EVENTS), REQUEST(KVM_SET_VCPU_EVENTS),
    REQUEST(KVM_GET_DEBUGREGS), REQUEST(KVM_SET_DEBUGREGS), REQUEST(KVM_GET_LAPIC), REQUEST(KVM_SET_LAPIC),
    REQUEST(KVM_GET_MP_STATE), REQUEST(KVM_SET_MP_STATE),
};
enum { REQUESTS = sizeof requests / sizeof *requests, FAULTS = 16 };

/* What is answered in the kernel's place. */
static struct fault {
    unsigned request;
    const char *name;
    /* Of KVM_CHECK_EXTENSION only. */
    long capability;
    long answer;
    /* Of KVM_RUN only: the exit's reason, else -1. */
    long reason, suberror;
} faults[FAULTS];
static size_t fault_count;
static const char *when;
static int log_fd = -1;

/* MARK: The child */

/* Starts the command under a filter; its calls come by the listener. */
static pid_t start(char **command, int *listener) {
    struct sock_filter code[FAULTS + 8], *at = code;
    unsigned char left = (unsigned char)fault_count;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, left + 3);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, left + 1);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]));
    for (size_t i = 0; i < fault_count; i++) {
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, faults[i].request, left--, 0);
    }
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    return call_notices_start(command, code, (size_t)(at - code), listener);
}

/* MARK: Requests */

static void note(pid_t thread, const struct fault *fault) {
    char text[128];
    int length = snprintf(text, sizeof text, "%d %s\n", thread, fault->name);
    if (log_fd >= 0) (void)!write(log_fd, text, (size_t)length);
}

/* Where a thread has the pages of a vCPU that the kernel tells of exits in; 0 for nowhere. */
static uint64_t run_pages(pid_t thread, int fd) {
    char path[64], name[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", thread, fd);
    ssize_t length = readlink(path, name, sizeof name - 1);
    if (length <= 0) return 0;
    name[length] = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", thread);
    FILE *maps = fopen(path, "re");
    unsigned long long start, found = 0;
    while (maps && !found && fgets(line, sizeof line, maps)) {
        line[strcspn(line, "\n")] = 0;
        size_t end = strlen(line), size = strlen(name);
        if (end > size && !strcmp(line + end - size, name) && sscanf(line, "%llx-", &start) == 1) found = start;
    }
    if (maps) fclose(maps);
    return found;
}

static bool write_exit(const struct fault *fault, pid_t thread, int fd) {
    uint64_t pages = run_pages(thread, fd);
    struct kvm_run run = {.exit_reason = (uint32_t)fault->reason};
    run.internal.suberror = (uint32_t)fault->suberror;
    size_t parts[][2] = {
        {offsetof(struct kvm_run, exit_reason), sizeof run.exit_reason},
        {offsetof(struct kvm_run, internal), offsetof(struct kvm_run, internal.data) - offsetof(struct kvm_run, internal)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        struct iovec here = {(char *)&run + parts[i][0], parts[i][1]};
        struct iovec there = {(void *)(pages + parts[i][0]), parts[i][1]};
        if (!pages || process_vm_writev(thread, &here, 1, &there, 1, 0) != (ssize_t)parts[i][1]) return false;
    }
    return true;
}

static const struct fault *find(const struct seccomp_notif *call) {
    if (when && access(when, F_OK)) return NULL;
    for (size_t i = 0; i < fault_count; i++) {
        const struct fault *fault = &faults[i];
        if (fault->request != (unsigned)call->data.args[1]) continue;
        if (fault->request == KVM_CHECK_EXTENSION && (uint64_t)fault->capability != call->data.args[2]) continue;
        return fault;
    }
    return NULL;
}

/* Returns false at the end of the last process. */
static bool serve(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno == EINTR || errno == ENOENT;
    struct seccomp_notif_resp response = {.id = call.id};
    const struct fault *fault = find(&call);
    if (!fault) {
        response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    } else {
        note((pid_t)call.pid, fault);
        if (fault->reason >= 0 && !write_exit(fault, (pid_t)call.pid, (int)call.data.args[0])) {
            fprintf(stderr, "kvm-faults: a vCPU's pages are not to be found\n");
            response.error = -ENXIO;
        } else if (fault->answer < 0) {
            response.error = (int)fault->answer;
        } else {
            response.val = fault->answer;
        }
    }
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
    return true;
}

/* MARK: Start */

static struct fault *add(unsigned request, const char *name) {
    if (fault_count == FAULTS) return NULL;
    struct fault *fault = &faults[fault_count++];
    *fault = (struct fault){.request = request, .name = name, .reason = -1};
    return fault;
}

static bool add_answer(char *text) {
    char *equals = strchr(text, '='), *end;
    if (!equals) return false;
    *equals = 0;
    for (size_t i = 0; i < REQUESTS; i++) {
        if (strcmp(requests[i].name, text)) continue;
        struct fault *fault = add(requests[i].number, text);
        if (!fault) return false;
        fault->answer = strtol(equals + 1, &end, 10);
        return end != equals + 1 && !*end;
    }
    return false;
}

static bool option(const char *name, char *value) {
    struct fault *fault;
    if (!strcmp(name, "--answer")) return add_answer(value);
    if (!strcmp(name, "--capability")) {
        return (fault = add(KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION"))
            && sscanf(value, "%ld=%ld", &fault->capability, &fault->answer) == 2;
    }
    if (!strcmp(name, "--exit")) {
        return (fault = add(KVM_RUN, "KVM_RUN")) && sscanf(value, "%ld:%ld", &fault->reason, &fault->suberror) >= 1
            && fault->reason >= 0;
    }
    if (!strcmp(name, "--when")) return (when = value);
    return !strcmp(name, "--log") && (log_fd = open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) >= 0;
}

int main(int count, char **arguments) {
    int at = 1, listener;
    for (; at < count && strcmp(arguments[at], "--"); at += 2) {
        if (at + 1 < count && option(arguments[at], arguments[at + 1])) continue;
        fprintf(stderr, "kvm-faults: bad option %s\n", arguments[at]);
        return 2;
    }
    if (at + 1 >= count) return fprintf(stderr, "kvm-faults: no command\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    pid_t child = start(arguments + at + 1, &listener);
    if (child < 0 || listener < 0) return fprintf(stderr, "kvm-faults: cannot start %s\n", arguments[at + 1]), 2;
    for (struct pollfd state = {listener, POLLIN, 0};;) {
        int ready = poll(&state, 1, -1);
        if (ready > 0 && call_notices_ended(&state)) break;
        if (ready > 0 && !serve(listener)) break;
    }
    return call_notices_status(child);
}
