// The first process of an x86-64 Linux guest in the lab: works on memory, disk, network, timers, signals and
// registers at once, and says on the console what of it went wrong.
//
//   lab: works NAME=VALUE...      once, when all of it has begun: CPUs, devices, clock
//   lab: report NAME=VALUE...     each second, and once more for the word "end" on the console
//   lab: FAIL REASON              at once
//   lab: kernel TEXT              a line of the kernel's log, of level "warning" or worse since the work began
//   lab: end                      the last; the machine is switched off
//
// Two network cards, if there are any, are joined outside: what one sends, the other returns. One that was passed
// through is joined with itself: what it sends comes back.

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "vsock.h"

// VMADDR_CID_HOST.
enum { host_cid = 2 };

struct shared *shared;
static int console;

void say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    // In one piece: the kernel and the other processes write as well.
    if (write(console, line, length) < 0)
        reboot(RB_POWER_OFF);
}

static void start(void (*work)(int), int argument)
{
    pid_t child = fork();
    if (child < 0)
        FAIL("fork: %s", strerror(errno));
    if (child == 0) {
        work(argument);
        FAIL("a part of the work has ended");
    }
}

// What the driver sees.

void read_line(const char *path, char *line, int size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = file < 0 ? 0 : read(file, line, size - 1);
    line[count > 0 ? count : 0] = 0;
    line[strcspn(line, "\n")] = 0;
    if (file >= 0)
        close(file);
}

int find_device(const char *device, char *address)
{
    DIR *devices = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    int found = 0;
    while (devices && !found && (entry = readdir(devices))) {
        char path[300], id[16];
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/device", entry->d_name);
        read_line(path, id, sizeof id);
        found = !strcmp(id, device);
        if (found && address)
            snprintf(address, address_size, "%.31s", entry->d_name);
    }
    if (devices)
        closedir(devices);
    return found;
}

// Whether there is a virtio device of this id, as in "0x0013".
static int has_virtio(const char *device)
{
    for (int i = 0; i < 16; i++) {
        char path[64], id[16];
        snprintf(path, sizeof path, "/sys/bus/virtio/devices/virtio%d/device", i);
        read_line(path, id, sizeof id);
        if (!strcmp(id, device))
            return 1;
    }
    return 0;
}

static void report(const char *word)
{
    char boot[64], sockets[256], carrier_changes[32], unsent[32];
    read_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    describe_vsock(sockets, sizeof sockets);
    // Of the first card, if there is one: how often its link has changed, and bytes that it has in hand.
    read_line("/sys/class/net/eth0/carrier_changes", carrier_changes, sizeof carrier_changes);
    read_line("/sys/class/net/eth0/queues/tx-0/byte_queue_limits/inflight", unsent, sizeof unsent);
    say("lab: %s uptime-ms=%lu boot=%s blocks=%lu frames=%lu sleeps=%lu alarms=%lu signals=%lu rounds=%lu readings=%lu passed-blocks=%lu transfers=%lu "
        "passed-frames=%lu pages=%lu plugged=%lu unplugged=%lu plugged-blocks=%lu carrier-changes=%lu unsent=%lu %s longest-sleep-us=%lu longest-frame-us=%lu longest-passed-frame-us=%lu", word,
        now(CLOCK_BOOTTIME) / 1000000, boot, shared->blocks, shared->frames, shared->sleeps, shared->alarms,
        shared->signals, shared->rounds, shared->readings, shared->passed_blocks, shared->transfers,
        shared->passed_frames, shared->pages, shared->plugged, shared->unplugged,
        shared->plugged_blocks, strtoul(carrier_changes, NULL, 10), strtoul(unsent, NULL, 10), sockets,
        shared->longest_sleep / 1000, shared->longest_frame / 1000, shared->longest_passed_frame / 1000);
}

// The kernel's log from where `log` stands.
static void kernel_lines(int log)
{
    char record[4096];
    for (;;) {
        ssize_t count = read(log, record, sizeof record - 1);
        if (count < 0 && errno == EPIPE)
            continue;
        if (count <= 0)
            return;
        record[count] = 0;
        char *text = strchr(record, ';');
        if (!text || (atoi(record) & 7) > 4)
            continue;
        text[strcspn(text, "\n")] = 0;
        // Its head has the level, a number and the time in us.
        char *time = strchr(record, ',');
        time = time ? strchr(time + 1, ',') : NULL;
        say("lab: kernel %s (at %lu ms)", text + 1, time ? strtoul(time + 1, NULL, 10) / 1000 : 0);
    }
}

static void load_modules(void)
{
    char path[32];
    for (int i = 0; i < 32; i++) {
        snprintf(path, sizeof path, "/modules/%d.ko", i);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0)
            return;
        if (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST)
            FAIL("%s: %s", path, strerror(errno));
        close(file);
    }
}

// Opens a disk that comes some time after its driver.
static int await_disk(const char *path)
{
    for (int i = 0; i < 600; i++) {
        int disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (disk >= 0)
            return disk;
        usleep(100000);
    }
    FAIL("%s: %s", path, strerror(errno));
}

int main(void)
{
    mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    console = open("/dev/console", O_RDWR | O_CLOEXEC);
    if (console < 0)
        reboot(RB_POWER_OFF);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    load_modules();
    int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC), cpus = sysconf(_SC_NPROCESSORS_ONLN);
    // Disks and cards are there when their driver's module is.
    int disk = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC), first = open_virtio_card(0), second = open_virtio_card(1);
    lseek(log, 0, SEEK_END);
    char clock[32];
    read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", clock, sizeof clock);

    for (int cpu = 0; cpu < cpus; cpu++) {
        start(clock_work, cpu);
        start(register_work, cpu);
    }
    start(sleep_work, 0);
    start(alarm_work, 0);
    start(signal_work, 0);
    // From the kernel's command line, which does not know it: MiB of memory to work on.
    const char *memory = getenv("lab_memory");
    if (memory)
        start(memory_work, atoi(memory));
    if (getenv("lab_plugs"))
        start(plugged_work, 0);
    if (disk >= 0)
        start(disk_work, disk);
    if (second >= 0) {
        start(return_frames, second);
        start(send_frames, first);
    }
    int edu = find_device("0x11e8", NULL), nvme = find_device("0x0010", NULL), card = find_passed_card();
    if (edu)
        start(edu_work, 0);
    if (nvme)
        start(passed_disk_work, await_disk("/dev/nvme0n1"));
    if (card >= 0)
        start(passed_card_work, card);
    int vsock = has_virtio("0x0013");
    if (vsock) {
        start(vsock_server_work, 0);
        start(vsock_busy_work, host_cid);
        start(vsock_idle_work, host_cid);
    }
    say("lab: works cpus=%d disk=%d cards=%d edu=%d nvme=%d e1000e=%d vsock=%d clock=%s", cpus, disk >= 0,
        (first >= 0) + (second >= 0), edu, nvme, card >= 0, vsock, clock);

    char line[64] = "";
    size_t length = 0;
    while (!strstr(line, "end")) {
        report("report");
        struct pollfd ready = {.fd = console, .events = POLLIN};
        if (poll(&ready, 1, 1000) > 0) {
            ssize_t got = read(console, line + length, sizeof line - 1 - length);
            length = got > 0 && length + got < sizeof line - 1 ? length + got : 0;
            line[length] = 0;
        }
    }
    kill(-1, SIGKILL);
    while (wait(NULL) > 0)
        ;
    report("report");
    kernel_lines(log);
    say("lab: end");
    reboot(RB_POWER_OFF);
    pause();
}
