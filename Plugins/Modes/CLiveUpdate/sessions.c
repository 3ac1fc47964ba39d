#define _GNU_SOURCE
#include "liveupdate.h"
#include "sessions.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* What follows is the kernel's, as include/uapi/linux/liveupdate.h of Linux 7.2 has it; headers of most systems are
 * older. The commands carry no size: each structure begins with its own. */
#define LIVEUPDATE_TYPE 0xBA
#define CREATE_SESSION _IO(LIVEUPDATE_TYPE, 0x00)
#define RETRIEVE_SESSION _IO(LIVEUPDATE_TYPE, 0x01)
#define SESSION_PRESERVE_FD _IO(LIVEUPDATE_TYPE, 0x40)
#define SESSION_RETRIEVE_FD _IO(LIVEUPDATE_TYPE, 0x41)
#define SESSION_FINISH _IO(LIVEUPDATE_TYPE, 0x42)
#define SESSION_GET_NAME _IO(LIVEUPDATE_TYPE, 0x43)

struct named_session {
    uint32_t size;
    /* Of SESSION_GET_NAME 0. */
    int32_t fd;
    uint8_t name[BATON_SESSION_NAME_SIZE];
};
struct numbered_file {
    uint32_t size;
    int32_t fd;
    uint64_t token __attribute__((aligned(8)));
};
struct finished_session {
    uint32_t size;
    uint32_t reserved;
};

static const char device[] = "/dev/liveupdate";
/* What the module needs of a sandbox: BATON_NEEDS_PATHS of baton-module.h, which the holder is built without. */
__attribute__((used, visibility("default"))) const char baton_module_needs_paths[] = "/dev/liveupdate\0";
/* Milliseconds between two attempts to open the device, which one process can have open at a time. */
enum { RETRY_MS = 5 };

int baton_liveupdate_access(void) { return access(device, R_OK | W_OK); }

static int open_device(int limit_ms) {
    for (int waited = 0;; waited += RETRY_MS) {
        int fd = open(device, O_RDWR | O_CLOEXEC);
        if (fd >= 0 || errno != EBUSY || waited >= limit_ms) return fd;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000L}, NULL);
    }
}

static int named(int device_fd, const char *name, unsigned long command) {
    struct named_session argument = {.size = sizeof argument, .fd = -1};
    if (strlen(name) >= sizeof argument.name) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(argument.name, name, strlen(name));
    if (ioctl(device_fd, command, &argument)) return -1;
    if (fcntl(argument.fd, F_SETFD, FD_CLOEXEC)) return -1;
    return argument.fd;
}

int baton_session_create(int device_fd, const char *name) { return named(device_fd, name, CREATE_SESSION); }

int baton_session_open(const char *name, int limit_ms) {
    int fd = open_device(limit_ms);
    if (fd < 0) return -1;
    int session = named(fd, name, RETRIEVE_SESSION), code = errno;
    close(fd);
    errno = code;
    return session;
}

int baton_session_preserve(int session, int fd, uint64_t token) {
    struct numbered_file argument = {.size = sizeof argument, .fd = fd, .token = token};
    return ioctl(session, SESSION_PRESERVE_FD, &argument) ? -1 : 0;
}

int baton_session_retrieve(int session, uint64_t token) {
    struct numbered_file argument = {.size = sizeof argument, .fd = -1, .token = token};
    return ioctl(session, SESSION_RETRIEVE_FD, &argument) ? -1 : argument.fd;
}

int baton_session_finish(int session) {
    struct finished_session argument = {.size = sizeof argument};
    return ioctl(session, SESSION_FINISH, &argument) ? -1 : 0;
}

int baton_session_is(int fd, const char *name) {
    struct named_session argument = {.size = sizeof argument};
    if (!ioctl(fd, SESSION_GET_NAME, &argument)) return !strncmp((char *)argument.name, name, sizeof argument.name);
    /* Before Linux 7.2 the file's name says it (kernel/liveupdate/luo_session.c). */
    char path[40], is[160], wanted[160];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(wanted, sizeof wanted, "anon_inode:[luo_session] %s", name);
    ssize_t length = readlink(path, is, sizeof is - 1);
    if (length < 0) return 0;
    is[length] = 0;
    return !strcmp(is, wanted);
}
