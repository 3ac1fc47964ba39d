// The first process of an x86-64 Linux guest in the lab: works on disk, network, timers, signals and
// registers at once, and says on the console what of it went wrong.
//
//   lab: works NAME=VALUE...      once, when all of it has begun: boot id, CPUs, disk, cards
//   lab: report NAME=VALUE...     each second, and once more for the word "end" on the console
//   lab: FAIL REASON              at once
//   lab: kernel TEXT              a line of the kernel's log, of level "warning" or worse since the work began
//   lab: end                      the last; the machine is switched off
//
// Two network cards, if there are any, are joined outside: what one sends, the other returns.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// What the processes have done, in memory of all of them.
static struct shared {
    uint64_t blocks, frames, returned, sleeps, alarms, signals, rounds, readings;
    // The latest time that any CPU has read, in ns.
    uint64_t latest;
    // The longest that a sleep of 10 ms, or the answer to a frame, took, in ns.
    uint64_t longest_sleep, longest_frame;
} *shared;

static int console;

static void say(const char *format, ...)
{
    char line[512];
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

#define FAIL(format, ...) \
    do { \
        say("lab: FAIL " format, ##__VA_ARGS__); \
        pause(); \
        _exit(1); \
    } while (0)

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void add(uint64_t *counter) { __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15ull + b;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 32;
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

// Disk: each block says which round wrote it. It is read back, and so is one of long ago.

enum { block_size = 4096, block_words = block_size / 8 };

static void fill(uint64_t *block, uint64_t round)
{
    for (int i = 0; i < block_words; i++)
        block[i] = mix(round, i);
}

static void check_block(int disk, uint64_t *block, uint64_t round, uint64_t blocks)
{
    memset(block, 0xee, block_size);
    ssize_t count = pread(disk, block, block_size, round % blocks * block_size);
    if (count != block_size)
        FAIL("reading block %lu: %s", round % blocks, count < 0 ? strerror(errno) : "short");
    for (int i = 0; i < block_words; i++)
        if (block[i] != mix(round, i))
            FAIL("block %lu, word %d is %lx, not %lx of round %lu", round % blocks, i, block[i], mix(round, i), round);
}

static void disk_work(int disk)
{
    uint64_t size = lseek(disk, 0, SEEK_END), blocks = size / block_size;
    uint64_t *block = mmap(NULL, block_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t round = 0;; round++) {
        fill(block, round);
        ssize_t count = pwrite(disk, block, block_size, round % blocks * block_size);
        if (count != block_size)
            FAIL("writing block %lu: %s", round % blocks, count < 0 ? strerror(errno) : "short");
        if (round % 32 == 31 && fdatasync(disk))
            FAIL("fdatasync: %s", strerror(errno));
        check_block(disk, block, round, blocks);
        uint64_t back = mix(round, 1) % (round < blocks ? round + 1 : blocks);
        check_block(disk, block, round - back, blocks);
        add(&shared->blocks);
        usleep(2000);
    }
}

// Network: numbered frames over two cards and back, each of which must come once.

enum { frame_type = 0x88b5, frame_length = 512 };

static int open_card(int number)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "eth%d", number);
    int card = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(frame_type));
    if (card < 0 || ioctl(card, SIOCGIFFLAGS, &request))
        return -1;
    request.ifr_flags |= IFF_UP | IFF_PROMISC;
    if (ioctl(card, SIOCSIFFLAGS, &request) || ioctl(card, SIOCGIFINDEX, &request))
        FAIL("%s: %s", request.ifr_name, strerror(errno));
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(frame_type), .sll_ifindex = request.ifr_ifindex};
    int one = 1;
    if (bind(card, (struct sockaddr *)&address, sizeof address) ||
        setsockopt(card, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one))
        FAIL("%s: %s", request.ifr_name, strerror(errno));
    return card;
}

static void return_frames(int card)
{
    uint8_t frame[2048];
    for (;;) {
        ssize_t count = recv(card, frame, sizeof frame, 0);
        if (count < 0)
            FAIL("receiving a frame: %s", strerror(errno));
        if (send(card, frame, count, 0) != count)
            FAIL("returning a frame: %s", strerror(errno));
        add(&shared->returned);
    }
}

static void make_frame(uint64_t *frame, uint64_t number)
{
    memset(frame, 0xff, 12);
    for (int i = 2; i < frame_length / 8; i++)
        frame[i] = mix(number, i);
    ((uint8_t *)frame)[12] = frame_type >> 8;
    ((uint8_t *)frame)[13] = frame_type & 0xff;
    frame[2] = number;
}

static void send_frames(int card)
{
    uint64_t sent[frame_length / 8] = {0}, received[256];
    for (uint64_t number = 0;; number++) {
        make_frame(sent, number);
        uint64_t begun = now(CLOCK_MONOTONIC);
        if (send(card, sent, frame_length, 0) != frame_length)
            FAIL("sending frame %lu: %s", number, strerror(errno));
        struct pollfd ready = {.fd = card, .events = POLLIN};
        if (poll(&ready, 1, 30000) != 1)
            FAIL("frame %lu was lost (%lu were returned)", number, shared->returned);
        ssize_t count = recv(card, received, sizeof received, 0);
        if (count != frame_length || memcmp(received, sent, frame_length))
            FAIL("in place of frame %lu came %lu, of %zd bytes", number, received[2], count);
        uint64_t took = now(CLOCK_MONOTONIC) - begun;
        if (took > shared->longest_frame)
            shared->longest_frame = took;
        add(&shared->frames);
        usleep(1000);
    }
}

// Time: it never goes back, on one CPU or between two; sleeps last; the clocks stay together.

static void clock_work(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        FAIL("CPU %d: %s", cpu, strerror(errno));
    uint64_t counter = __builtin_ia32_rdtsc();
    for (;;) {
        for (int i = 0; i < 200; i++) {
            uint64_t earlier = counter;
            counter = __builtin_ia32_rdtsc();
            if (counter < earlier)
                FAIL("CPU %d: the time-stamp counter went back by %lu", cpu, earlier - counter);
            uint64_t before = __atomic_load_n(&shared->latest, __ATOMIC_SEQ_CST), time = now(CLOCK_MONOTONIC);
            if (time < before)
                FAIL("CPU %d: the time went back by %lu ns", cpu, before - time);
            while (before < time && !__atomic_compare_exchange_n(
                       &shared->latest, &before, time, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                ;
            add(&shared->readings);
        }
        usleep(5000);
    }
}

// The time-stamp counter goes at the rate of the other clocks, from one second to the next.
static void check_rate(uint64_t *time, uint64_t *counter, double *rate)
{
    uint64_t new_time = now(CLOCK_MONOTONIC), new_counter = __builtin_ia32_rdtsc();
    if (new_time - *time < 1000000000)
        return;
    double found = (double)(new_counter - *counter) / (new_time - *time);
    // A reading may be late, in an emulator by tens of ms.
    if (*rate && (found < *rate * 0.8 || found > *rate * 1.25))
        FAIL("the time-stamp counter goes at %f GHz, after %f GHz", found, *rate);
    *time = new_time, *counter = new_counter, *rate = *rate ? *rate : found;
}

static void sleep_work(int unused)
{
    (void)unused;
    uint64_t rate_time = now(CLOCK_MONOTONIC), rate_counter = __builtin_ia32_rdtsc();
    double rate = 0;
    int64_t apart = now(CLOCK_REALTIME) - now(CLOCK_MONOTONIC), raw = now(CLOCK_BOOTTIME) - now(CLOCK_MONOTONIC);
    for (;;) {
        uint64_t before = now(CLOCK_MONOTONIC);
        struct timespec length = {.tv_nsec = 10000000};
        nanosleep(&length, NULL);
        uint64_t time = now(CLOCK_MONOTONIC), took = time - before;
        if (took < 10000000)
            FAIL("a sleep of 10 ms took %lu ns", took);
        if (took > shared->longest_sleep)
            shared->longest_sleep = took;
        // The two readings of a pair may be some while apart, the less the fewer interrupts come between.
        int64_t least = INT64_MAX, least_raw = INT64_MAX;
        for (int i = 0; i < 5; i++) {
            uint64_t first = now(CLOCK_MONOTONIC);
            int64_t wall = now(CLOCK_REALTIME) - first - apart;
            int64_t boot = now(CLOCK_BOOTTIME) - first - raw;
            least = wall < least ? wall : least;
            least_raw = boot < least_raw ? boot : least_raw;
        }
        if (least > 5000000 || least < -5000000 || least_raw > 5000000 || least_raw < -5000000)
            FAIL("the clocks are %ld and %ld ns apart", least, least_raw);
        check_rate(&rate_time, &rate_counter, &rate);
        add(&shared->sleeps);
    }
}

// Signals: a periodic timer, of which no expiry is lost, and numbers sent to a process and back.

static void alarm_work(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec period = {.it_value.tv_nsec = 20000000, .it_interval.tv_nsec = 20000000};
    uint64_t begun = now(CLOCK_MONOTONIC), expiries = 0;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &period, NULL))
        FAIL("timer: %s", strerror(errno));
    for (;;) {
        siginfo_t info;
        struct timespec patience = {.tv_sec = 30};
        if (sigtimedwait(&set, &info, &patience) < 0)
            FAIL("no signal of the timer in 30 s");
        expiries += 1 + info.si_overrun;
        uint64_t due = (now(CLOCK_MONOTONIC) - begun) / 20000000;
        if (expiries > due || due > expiries + 1500)
            FAIL("the timer has expired %lu times, not %lu", expiries, due);
        __atomic_store_n(&shared->alarms, expiries, __ATOMIC_RELAXED);
    }
}

static void answer_signals(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(&set, &info) > 0)
            sigqueue(info.si_pid, SIGRTMIN + 2, info.si_value);
    }
}

static void signal_work(int unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pid_t other = fork();
    if (other == 0)
        answer_signals(0);
    for (int number = 0;; number++) {
        siginfo_t info;
        struct timespec patience = {.tv_sec = 30};
        if (sigqueue(other, SIGRTMIN + 1, (union sigval){.sival_int = number}))
            FAIL("sigqueue: %s", strerror(errno));
        if (sigtimedwait(&set, &info, &patience) != SIGRTMIN + 2 || info.si_value.sival_int != number)
            FAIL("signal %d was not answered", number);
        add(&shared->signals);
        usleep(1000);
    }
}

// Registers: what vector registers, the x87 stack and general registers hold stays while nothing but time goes by.

static void register_work(int which)
{
    __attribute__((aligned(32))) uint64_t in[8][4], out[8][4];
    int wide = __builtin_cpu_supports("avx");
    uint64_t number = which;
    for (;; number++) {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 4; j++)
                in[i][j] = mix(number, i * 4 + j);
        uint64_t spins = 20000, general = number, flags = 0x1f80 | which << 13, flags_out = 0;
        long double x87 = number + 0.25L;
        __asm__ volatile("ldmxcsr %0" ::"m"(flags));
#define LOAD(R) "vmovdqa " #R "*32(%[in]), %%ymm" #R "\n"
#define STORE(R) "vmovdqa %%ymm" #R ", " #R "*32(%[out])\n"
#define LOAD_NARROW(R) "movdqa " #R "*32(%[in]), %%xmm" #R "\n"
#define STORE_NARROW(R) "movdqa %%xmm" #R ", " #R "*32(%[out])\n"
#define ALL(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define SPIN "1: dec %[spins]\n jnz 1b\n"
        if (wide)
            __asm__ volatile(ALL(LOAD) SPIN ALL(STORE) "vzeroupper"
                             : [spins] "+r"(spins), [general] "+r"(general), [x87] "+t"(x87)
                             : [in] "r"(in), [out] "r"(out)
                             : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        else
            __asm__ volatile(ALL(LOAD_NARROW) SPIN ALL(STORE_NARROW)
                             : [spins] "+r"(spins), [general] "+r"(general), [x87] "+t"(x87)
                             : [in] "r"(in), [out] "r"(out)
                             : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
        __asm__ volatile("stmxcsr %0" : "=m"(flags_out));
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < (wide ? 4 : 2); j++)
                if (in[i][j] != out[i][j])
                    FAIL("vector register %d, word %d is %lx, not %lx", i, j, out[i][j], in[i][j]);
        // The exception bits are set by whatever is computed.
        if (general != number || x87 != number + 0.25L || (flags_out ^ flags) & 0xffc0)
            FAIL("registers: %lu, %Lf and mxcsr %lx in round %lu", general, x87, flags_out, number);
        add(&shared->rounds);
        usleep(3000);
    }
}

// What the driver sees.

static void read_line(const char *path, char *line, int size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = file < 0 ? 0 : read(file, line, size - 1);
    line[count > 0 ? count : 0] = 0;
    line[strcspn(line, "\n")] = 0;
    if (file >= 0)
        close(file);
}

static void report(const char *word)
{
    char boot[64];
    read_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    say("lab: %s uptime-ms=%lu boot=%s blocks=%lu frames=%lu sleeps=%lu alarms=%lu signals=%lu rounds=%lu readings=%lu "
        "longest-sleep-us=%lu longest-frame-us=%lu", word,
        now(CLOCK_BOOTTIME) / 1000000, boot, shared->blocks, shared->frames, shared->sleeps, shared->alarms,
        shared->signals, shared->rounds, shared->readings, shared->longest_sleep / 1000, shared->longest_frame / 1000);
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
        say("lab: kernel %s", text + 1);
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

int main(int count, char **words)
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
    int disk = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC), first = open_card(0), second = open_card(1);
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
    if (disk >= 0)
        start(disk_work, disk);
    if (second >= 0) {
        start(return_frames, second);
        start(send_frames, first);
    }
    say("lab: works cpus=%d disk=%d cards=%d clock=%s", cpus, disk >= 0, (first >= 0) + (second >= 0), clock);
    (void)count, (void)words;

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
