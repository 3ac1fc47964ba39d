/* vfio-user-server [OPTION…] SOCKET
 *   --log FILE      one line a message that changes something
 *   --twin          asks on a connection of its own
 *   --ask           does DMA by message, not by mapping guest memory
 *   --caps TEXT     instead of its capabilities
 *   --bad KIND=N    answers the first message N (its command) badly: see bad_reply
 *   --region WHAT   says nonsense of its regions: see region_info
 *   --request WHAT  asks nonsense once the guest uses the device: see ask_nonsense
 *   --limit N       takes N descriptors with a message, default 2
 *
 * SIGUSR1 is an error of the device.
 *
 * A vfio-user server for tests: checks each message, and notes what is wrong
 * with one as "refused". Serves one connection after the other, until it is killed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "server.h"

struct settings settings = {.message_fds = 2};
static int log_fd = 2;

void note(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 2) length = sizeof text - 2;
    text[length++] = '\n';
    (void)!write(log_fd, text, (size_t)length);
}

static void parse(int count, char **arguments) {
    for (int i = 1; i < count - 1; i++) {
        const char *option = arguments[i];
        if (!strcmp(option, "--twin")) {
            settings.twin = true;
            continue;
        }
        if (!strcmp(option, "--ask")) {
            settings.asks = true;
            continue;
        }
        const char *value = arguments[++i];
        if (!strcmp(option, "--log")) {
            log_fd = open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        } else if (!strcmp(option, "--caps")) {
            settings.capabilities = value;
        } else if (!strcmp(option, "--region")) {
            settings.region = value;
        } else if (!strcmp(option, "--request")) {
            settings.request = value;
        } else if (!strcmp(option, "--limit")) {
            settings.message_fds = (unsigned)atoi(value);
        } else if (!strcmp(option, "--bad") && strchr(value, '=')) {
            settings.bad = strndup(value, strcspn(value, "="));
            settings.bad_command = atoi(strchr(value, '=') + 1);
        } else {
            fprintf(stderr, "vfio-user-server: unknown option %s\n", option);
            exit(2);
        }
    }
}

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return -1;
    strcpy(address.sun_path, path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address)) return -1;
    return listen(listener, 1) ? -1 : listener;
}

static volatile sig_atomic_t has_error;
static void take_error(int number) { has_error = number; }

int main(int count, char **arguments) {
    if (count < 2) return 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, take_error);
    parse(count, arguments);
    int file = device_start(), listener = listen_at(arguments[count - 1]);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec period = {{0, 1000000}, {0, 1000000}};
    if (file < 0 || listener < 0 || timer < 0 || timerfd_settime(timer, 0, &period, NULL)) {
        perror("vfio-user-server");
        return 1;
    }
    server_start(file);
    int connection = -1;
    for (;;) {
        struct pollfd states[] = {{timer, POLLIN, 0}, {connection < 0 ? listener : connection, POLLIN, 0}};
        int ready = poll(states, 2, -1);
        if (has_error) {
            has_error = 0;
            server_error();
        }
        if (ready < 0) continue;
        if (states[1].revents && connection < 0) {
            connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (connection < 0) continue;
            note("connect");
            server_connected(connection);
        } else if (states[1].revents && !server_message()) {
            note("disconnect dma=%lu", device_dma_count());
            server_disconnected();
            close(connection);
            connection = -1;
        }
        uint64_t ticks;
        if (states[0].revents && read(timer, &ticks, sizeof ticks) > 0 && connection >= 0) server_tick();
    }
}
