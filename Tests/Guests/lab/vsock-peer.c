// The host's end of the guest's AF_VSOCK sockets. The argument is the guest's address.
//
//   vsock: report NAME=VALUE...   each second
//   lab: FAIL REASON              at once

#define _GNU_SOURCE
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include "vsock.h"

struct shared *shared;

void say(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length++] = '\n';
    if (write(STDOUT_FILENO, line, length) < 0)
        _exit(1);
}

static void start(void (*work)(int), int argument)
{
    if (fork())
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    work(argument);
    _exit(1);
}

int main(int count, char **arguments)
{
    int cid = count == 2 ? atoi(arguments[1]) : 0;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    start(vsock_server_work, 0);
    start(vsock_busy_work, cid);
    start(vsock_idle_work, cid);
    for (;;) {
        char text[256];
        describe_vsock(text, sizeof text);
        say("vsock: report %s", text);
        sleep(1);
    }
}
