/* vfio-simulator [OPTION…] -- COMMAND…
 *   --log FILE               one line a request that changes something
 *   --device NAME            a device, by default one: 0000:06:0d.0
 *   --group NUMBER           the IOMMU group of the last device, default 7
 *   --lack WHAT              something that the kernel or the device has
 *   --lie WHAT               a hostile answer
 *   --refuse NAME=ERRNO[:N]  refuses a request, always or the Nth time
 *
 * SIGUSR1 is an error of the first device, SIGUSR2 the host's wish to have it back.
 *
 * Runs COMMAND with its opens of /dev/vfio and /dev/iommu, its VFIO and iommufd
 * ioctls and its look at the devices in sysfs answered here; those of what it
 * executes and forks too. Ends when all of them have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "call-notices.h"
#include "caller.h"
#include "simulator.h"

struct settings settings;
struct device devices[MAX_DEVICES] = {{.name = "0000:06:0d.0"}};
size_t device_count = 1;
struct group groups[MAX_DEVICES];
size_t group_count;
static int group_numbers[MAX_DEVICES] = {7};

int refuse(pid_t pid, const char *name, int error, const char *why) {
    note(pid, "refused %s errno=%d: %s", name, error, why);
    return -error;
}

int refused(const char *name) {
    for (size_t i = 0; i < settings.refusal_count; i++) {
        struct refusal *r = &settings.refusals[i];
        if (strcmp(r->name, name)) continue;
        r->seen++;
        if (!r->nth || r->nth == r->seen) return r->error;
    }
    return 0;
}

/* MARK: The child */

/* Starts the command under a filter; its calls come by the listener. */
static pid_t start(char **command, int *listener) {
    static const unsigned calls[] = {
        SYS_openat, SYS_newfstatat, SYS_fstat, SYS_readlinkat, SYS_faccessat,
#ifdef SYS_readlink
        SYS_readlink, SYS_access,
#endif
    };
    return call_notices_start_requests(command, calls, sizeof calls / sizeof *calls, VFIO_TYPE, listener);
}

/* MARK: Requests */

/* - Returns: false when the system call is none of ours. */
static bool answer_call(const struct seccomp_notif *call, struct answer *answer) {
    pid_t pid = (pid_t)call->pid;
    if (call->data.nr != SYS_ioctl) return files_answer(call, answer);
    unsigned request = (unsigned)call->data.args[1];
    uint64_t argument = call->data.args[2];
    enum kind kind;
    void *object;
    if (!identify(pid, (int)call->data.args[0], &kind, &object)) {
        *answer = (struct answer){refuse(pid, "ioctl", ENOTTY, "a descriptor that is none of VFIO's"), -1};
        return true;
    }
    switch (kind) {
    case CONTAINER: *answer = container_ioctl(object, pid, request, argument); break;
    case GROUP: *answer = group_ioctl(object, pid, request, argument); break;
    case DEVICE: *answer = device_ioctl(object, pid, request, argument); break;
    case IOMMUFD_FILE: *answer = iommufd_ioctl(object, pid, request, argument); break;
    }
    return true;
}

/* - Returns: false at the end of the last process. */
static bool serve(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno == EINTR || errno == ENOENT;
    call.pid = (unsigned)caller_process((pid_t)call.pid);
    struct answer answer = {0, -1};
    if (!answer_call(&call, &answer)) {
        call_notices_pass(listener, call.id);
    } else if (answer.fd < 0) {
        call_notices_answer(listener, call.id, answer.result);
    } else if (caller_give_fd(listener, call.id, answer.fd)) {
        call_notices_answer(listener, call.id, -EMFILE);
    }
    return true;
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static volatile sig_atomic_t has_error, has_request;

static void take_signal(int number) {
    if (number == SIGUSR1) has_error = 1;
    else has_request = 1;
}

/* Passes on what signals have asked for. */
static void take_notices(void) {
    if (has_error) {
        has_error = 0;
        device_notice(&devices[0], VFIO_PCI_ERR_IRQ_INDEX);
    }
    if (has_request) {
        has_request = 0;
        device_notice(&devices[0], VFIO_PCI_REQ_IRQ_INDEX);
    }
}

static void run(int listener) {
    const long long period = 500000;
    long long next = now();
    for (;;) {
        struct pollfd state = {listener, POLLIN, 0};
        long long left = next - now();
        struct timespec wait = {0, left > 0 ? left : 0};
        int ready = ppoll(&state, 1, &wait, NULL);
        if (ready > 0 && call_notices_ended(&state)) return;
        if (ready > 0 && !serve(listener)) return;
        take_notices();
        if (now() >= next) {
            for (size_t i = 0; i < device_count; i++) device_tick(&devices[i]);
            next = now() + period;
        }
    }
}

/* MARK: Start */

struct choice { const char *name; bool *flag; };

static bool choose(const struct choice *all, const char *what) {
    for (; all->name; all++) {
        if (!strcmp(all->name, what)) return *all->flag = true;
    }
    return false;
}

static bool lack(const char *what) {
    const struct choice all[] = {
        {"update_vaddr", &settings.lacks_update_vaddr}, {"unmap_all", &settings.lacks_unmap_all},
        {"type1", &settings.lacks_type1}, {"viable", &settings.lacks_viable}, {"pci", &settings.lacks_pci},
        {"reset", &settings.lacks_reset}, {"mmap", &settings.lacks_mmap}, {"hot_reset", &settings.lacks_hot_reset},
        {"flr", &settings.lacks_flr}, {"express", &settings.lacks_express}, {"rom", &settings.lacks_rom},
        {"cdev", &settings.lacks_cdev}, {"map_file", &settings.lacks_map_file},
        {"change_process", &settings.lacks_change_process}, {"request", &settings.lacks_request}, {0},
    };
    return choose(all, what);
}

static bool lie(const char *what) {
    const struct choice all[] = {
        {"rom_size", &settings.lies_rom_size}, {"ext_loop", &settings.lies_ext_loop},
        {"ext_wild", &settings.lies_ext_wild}, {"ari_first", &settings.lies_ari_first},
        {"region", &settings.lies_region}, {"config_size", &settings.lies_config_size},
        {"msix_place", &settings.lies_msix_place}, {"legacy_endpoint", &settings.lies_legacy_endpoint},
        {"hot_reset_count", &settings.lies_hot_reset_count}, {0},
    };
    return choose(all, what);
}

/* The first takes the place of the default. */
static bool add_device(const char *name) {
    static bool is_first = true;
    if (!is_first) {
        if (device_count == MAX_DEVICES) return false;
        group_numbers[device_count] = group_numbers[device_count - 1];
        device_count++;
    }
    is_first = false;
    devices[device_count - 1].name = name;
    return true;
}

static void start_devices(void) {
    for (size_t i = 0; i < device_count; i++) {
        struct group *group = group_number(group_numbers[i]);
        if (!group) {
            group = &groups[group_count++];
            group->number = group_numbers[i];
            group->fd = make_file(GROUP, group);
        }
        devices[i].group = group;
        devices[i].index = (unsigned)i;
        devices[i].cdev = (int)i;
        device_start(&devices[i]);
    }
}

const char *dma_counts(void) {
    static char text[256];
    int length = 0;
    for (size_t i = 0; i < device_count; i++) {
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%lu", i ? "," : "", devices[i].dma_count);
    }
    return text;
}

const char *label(const struct device *device) {
    static char text[64];
    if (device_count < 2) return "";
    snprintf(text, sizeof text, " device=%s", device->name);
    return text;
}

static bool add_refusal(char *text) {
    char *equals = strchr(text, '=');
    if (!equals || settings.refusal_count == sizeof settings.refusals / sizeof *settings.refusals) return false;
    *equals = 0;
    struct refusal *r = &settings.refusals[settings.refusal_count++];
    *r = (struct refusal){.name = text};
    return sscanf(equals + 1, "%d:%u", &r->error, &r->nth) >= 1 && r->error > 0;
}

static bool option(const char *name, char *value) {
    if (!strcmp(name, "--log")) return note_to(value);
    if (!strcmp(name, "--device")) return add_device(value);
    if (!strcmp(name, "--group")) return sscanf(value, "%d", &group_numbers[device_count - 1]) == 1;
    if (!strcmp(name, "--lack")) return lack(value);
    if (!strcmp(name, "--lie")) return lie(value);
    return !strcmp(name, "--refuse") && add_refusal(value);
}

int main(int count, char **arguments) {
    int at = 1;
    for (; at < count && strcmp(arguments[at], "--"); at += 2) {
        if (at + 1 < count && option(arguments[at], arguments[at + 1])) continue;
        fprintf(stderr, "vfio-simulator: bad option %s\n", arguments[at]);
        return 2;
    }
    if (at + 1 >= count) return fprintf(stderr, "vfio-simulator: no command\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, take_signal);
    signal(SIGUSR2, take_signal);
    start_devices();
    if (files_start()) return perror("vfio-simulator: sysfs"), 2;
    int listener;
    pid_t child = start(arguments + at + 1, &listener);
    if (child < 0 || listener < 0) return fprintf(stderr, "vfio-simulator: cannot start %s\n", arguments[at + 1]), 2;
    run(listener);
    files_end();
    for (size_t i = 0; i < device_count; i++) {
        const struct device *d = &devices[i];
        note(0, "end dma=%lu faults=%lu interrupts=%lu%s", d->dma_count, d->fault_count, d->raised, label(d));
    }
    return call_notices_status(child);
}
