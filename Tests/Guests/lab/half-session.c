// In the lab: leaves a session of the Live Update Orchestrator that has memory and no state of a guest, as a save that was
// cut off would. Says "kept" and waits for the kexec.
//
//     half-session NAME

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

// include/uapi/linux/liveupdate.h of Linux 7.2.
struct create_session {
    uint32_t size;
    int32_t fd;
    uint8_t name[64];
};
struct preserve_fd {
    uint32_t size;
    int32_t fd;
    uint64_t token;
};
#define CREATE_SESSION _IO(0xBA, 0x00)
#define PRESERVE_FD _IO(0xBA, 0x40)

// Of the first block of a guest's memory.
enum { MEMORY = 2, LENGTH = 16 << 20 };

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

int main(int count, char **arguments)
{
    struct create_session session = {.size = sizeof session};
    if (count != 2 || strlen(arguments[1]) >= sizeof session.name)
        return 2;
    memcpy(session.name, arguments[1], strlen(arguments[1]));
    int device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
    if (device < 0 || ioctl(device, CREATE_SESSION, &session))
        return fail("a session");
    close(device);
    int memory = memfd_create("half", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, LENGTH))
        return fail("a memfd");
    struct preserve_fd file = {.size = sizeof file, .fd = memory, .token = MEMORY};
    if (ioctl(session.fd, PRESERVE_FD, &file))
        return fail("to preserve it");
    puts("kept");
    fflush(stdout);
    for (;;)
        pause();
}
