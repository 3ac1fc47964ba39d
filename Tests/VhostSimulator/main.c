/* vhost-simulator [OPTION…] -- COMMAND…
 *   --log FILE               one line a request that changes something
 *   --lack WHAT              something that the kernel has: seqpacket, version1
 *   --taken CID              an address that another VM has
 *   --refuse NAME=ERRNO[:N]  refuses a request (open, own, address, run), from the Nth time on, or always
 *
 * SIGUSR1: the queues of all devices are found to be broken. SIGUSR2: nothing is refused any more, nor taken.
 *
 * Runs COMMAND with /dev/vhost-vsock answered here, and that of what it executes and forks too. Ends when all of them
 * have. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "call-notices.h"
#include "simulator.h"

struct settings settings;
static const char path[] = "/dev/vhost-vsock";
static struct refusal { const char *name; int error; unsigned first, seen; } refusals[8];
static size_t refusal_count;

int refused(const char *name) {
    for (size_t i = 0; i < refusal_count; i++) {
        struct refusal *r = &refusals[i];
        if (!strcmp(r->name, name) && ++r->seen >= r->first) return r->error;
    }
    return 0;
}

/* MARK: Files */

static struct device *find(pid_t pid, int fd) {
    char link[64];
    struct stat status;
    snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
    if (stat(link, &status)) return NULL;
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = &devices[i];
        if (device->peer >= 0 && device->inode == status.st_ino && device->device == status.st_dev) return device;
    }
    return NULL;
}

/* What has been closed is gone before anything else is asked, as a close that has returned is. */
static void collect_closed(void) {
    for (size_t i = 0; i < DEVICES; i++) {
        struct pollfd state = {devices[i].peer, POLLIN, 0};
        if (devices[i].peer >= 0 && poll(&state, 1, 0) > 0 && state.revents & POLLHUP) device_end(&devices[i]);
    }
}

/* Has the process get a new device. */
static void answer_open(int listener, const struct seccomp_notif *call) {
    pid_t pid = (pid_t)call->pid;
    int error = refused("open"), pair[2];
    if (error) return call_notices_answer(listener, call->id, -error);
    struct device *device = devices;
    while (device < devices + DEVICES && device->peer >= 0) device++;
    if (device == devices + DEVICES || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        return call_notices_answer(listener, call->id, -ENOMEM);
    struct stat status;
    fstat(pair[1], &status);
    *device = (struct device){.peer = pair[0], .device = status.st_dev, .inode = status.st_ino};
    for (size_t i = 0; i < QUEUES; i++) device->queues[i].kick = device->queues[i].call = device->queues[i].error = -1;
    note(pid, "open");
    if (caller_give_fd(listener, call->id, pair[1])) call_notices_answer(listener, call->id, -EMFILE);
    close(pair[1]);
}

static bool is_path(const struct seccomp_notif *call) {
    char text[sizeof path];
    return !caller_fetch((pid_t)call->pid, call->data.args[1], text, sizeof text) && !memcmp(text, path, sizeof path);
}

/* The thread by which the kernel serves a device is one of its owner's, which an exec ends. */
static void note_exec(pid_t pid) {
    for (size_t i = 0; i < DEVICES; i++) {
        struct device *device = &devices[i];
        if (device->peer < 0 || device->owner != pid) continue;
        note(pid, "an exec ends the device's thread");
        device->is_broken = true;
    }
}

/* - Returns: false at the end of the last process. */
static bool serve(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno == EINTR || errno == ENOENT;
    call.pid = (unsigned)caller_process((pid_t)call.pid);
    collect_closed();
    struct device *device;
    /* With O_PATH nothing is opened: a sandbox has rules by that. */
    if (call.data.nr == SYS_openat && !(call.data.args[2] & O_PATH) && is_path(&call)) {
        answer_open(listener, &call);
    } else if (call.data.nr == SYS_ioctl && (device = find((pid_t)call.pid, (int)call.data.args[0]))) {
        long result = device_ioctl(device, (pid_t)call.pid, (unsigned)call.data.args[1], call.data.args[2]);
        call_notices_answer(listener, call.id, result);
    } else {
        if (call.data.nr == SYS_execve || call.data.nr == SYS_execveat) note_exec((pid_t)call.pid);
        call_notices_pass(listener, call.id);
    }
    return true;
}

static volatile sig_atomic_t is_broken, is_lenient;

static void take_signal(int number) {
    if (number == SIGUSR1) is_broken = 1;
    else is_lenient = 1;
}

static void take_signals(void) {
    if (is_lenient) settings.taken = refusal_count = 0;
    for (size_t i = 0; i < DEVICES && is_broken; i++) {
        uint64_t one = 1;
        if (devices[i].peer >= 0 && devices[i].queues[0].error >= 0)
            (void)!write(devices[i].queues[0].error, &one, sizeof one);
    }
    is_broken = is_lenient = 0;
}

static void run(int listener, const sigset_t *mask) {
    for (;;) {
        struct pollfd states[1 + DEVICES * (QUEUES + 1)] = {{listener, POLLIN, 0}};
        struct device *owners[1 + DEVICES * (QUEUES + 1)] = {NULL};
        nfds_t count = 1;
        for (size_t i = 0; i < DEVICES; i++) {
            if (devices[i].peer < 0) continue;
            states[count++] = (struct pollfd){devices[i].peer, POLLIN, 0};
            for (size_t k = 0; k < QUEUES && devices[i].runs; k++) {
                owners[count] = &devices[i];
                states[count++] = (struct pollfd){devices[i].queues[k].kick, POLLIN, 0};
            }
        }
        int ready = ppoll(states, count, NULL, mask);
        take_signals();
        if (ready <= 0) continue;
        for (nfds_t i = 1; i < count; i++) {
            uint64_t number;
            if (!owners[i] || !(states[i].revents & POLLIN)) continue;
            if (read(states[i].fd, &number, sizeof number) == sizeof number) device_work(owners[i]);
        }
        collect_closed();
        if (call_notices_ended(&states[0])) return;
        if (states[0].revents & POLLIN && !serve(listener)) return;
    }
}

/* MARK: Start */

static bool add_refusal(char *text) {
    char *equals = strchr(text, '=');
    if (!equals || refusal_count == sizeof refusals / sizeof *refusals) return false;
    *equals = 0;
    struct refusal *r = &refusals[refusal_count++];
    *r = (struct refusal){.name = text};
    return sscanf(equals + 1, "%d:%u", &r->error, &r->first) >= 1 && r->error > 0;
}

static bool option(const char *name, char *value) {
    if (!strcmp(name, "--log")) return note_to(value);
    if (!strcmp(name, "--taken")) return (settings.taken = strtoull(value, NULL, 10)) > 0;
    if (!strcmp(name, "--refuse")) return add_refusal(value);
    if (strcmp(name, "--lack")) return false;
    if (!strcmp(value, "seqpacket")) return settings.lacks_seqpacket = true;
    return !strcmp(value, "version1") && (settings.lacks_version1 = true);
}

int main(int count, char **arguments) {
    static const unsigned calls[] = {SYS_openat, SYS_execve, SYS_execveat};
    int at = 1, listener;
    for (; at < count && strcmp(arguments[at], "--"); at += 2) {
        if (at + 1 < count && option(arguments[at], arguments[at + 1])) continue;
        fprintf(stderr, "vhost-simulator: bad option %s\n", arguments[at]);
        return 2;
    }
    if (at + 1 >= count) return fprintf(stderr, "vhost-simulator: no command\n"), 2;
    for (size_t i = 0; i < DEVICES; i++) devices[i].peer = -1;
    signal(SIGPIPE, SIG_IGN);
    /* Not before the command has its own: signals that are blocked are so in what is executed. */
    pid_t child = call_notices_start_requests(
        arguments + at + 1, calls, sizeof calls / sizeof *calls, VHOST_VIRTIO, &listener);
    if (child < 0 || listener < 0) return fprintf(stderr, "vhost-simulator: cannot start %s\n", arguments[at + 1]), 2;
    sigset_t ours, before;
    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR1);
    sigaddset(&ours, SIGUSR2);
    sigprocmask(SIG_BLOCK, &ours, &before);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = take_signal}, NULL);
    sigaction(SIGUSR2, &(struct sigaction){.sa_handler = take_signal}, NULL);
    run(listener, &before);
    collect_closed();
    return call_notices_status(child);
}
