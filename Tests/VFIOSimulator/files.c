/* What has a name: /dev/vfio, /dev/iommu and the devices' directories in sysfs;
 * and the files that were handed out for them. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "simulator.h"

static struct { dev_t device; ino_t inode; enum kind kind; void *object; } files[64];
static size_t file_count;
static char tree[64];
static const char sysfs[] = "/sys/bus/pci/devices/";

int make_file(enum kind kind, void *object) {
    static const char *names[] = {"vfio-container", "vfio-group", "vfio-device", "iommufd"};
    struct stat status;
    int fd = memfd_create(names[kind], MFD_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) || file_count == sizeof files / sizeof *files) abort();
    files[file_count].device = status.st_dev;
    files[file_count].inode = status.st_ino;
    files[file_count].kind = kind;
    files[file_count++].object = object;
    return fd;
}

bool identify(pid_t pid, int fd, enum kind *kind, void **object) {
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    if (stat(path, &status)) return false;
    for (size_t i = 0; i < file_count; i++) {
        if (files[i].inode != status.st_ino || files[i].device != status.st_dev) continue;
        *kind = files[i].kind;
        *object = files[i].object;
        return true;
    }
    return false;
}

void *object_of(pid_t pid, int fd, enum kind kind) {
    enum kind found;
    void *object;
    return identify(pid, fd, &found, &object) && found == kind ? object : NULL;
}

/* MARK: sysfs */

/* A real directory with what sysfs has of each device. */
int files_start(void) {
    snprintf(tree, sizeof tree, "/tmp/vfio-simulator.XXXXXX");
    if (!mkdtemp(tree)) return -1;
    for (size_t i = 0; i < device_count; i++) {
        char path[256], text[64];
        snprintf(path, sizeof path, "%s/%s", tree, devices[i].name);
        if (mkdir(path, 0755)) return -1;
        snprintf(path, sizeof path, "%s/%s/iommu_group", tree, devices[i].name);
        snprintf(text, sizeof text, "../../../../kernel/iommu_groups/%d", devices[i].group->number);
        if (symlink(text, path)) return -1;
        if (settings.lacks_cdev) continue;
        snprintf(path, sizeof path, "%s/%s/vfio-dev", tree, devices[i].name);
        if (mkdir(path, 0755)) return -1;
        snprintf(path, sizeof path, "%s/%s/vfio-dev/vfio%d", tree, devices[i].name, devices[i].cdev);
        if (mkdir(path, 0755)) return -1;
        snprintf(path, sizeof path, "%s/%s/vfio-dev/vfio%d/dev", tree, devices[i].name, devices[i].cdev);
        FILE *file = fopen(path, "w");
        if (!file) return -1;
        fprintf(file, "%d:%d\n", CDEV_MAJOR, devices[i].cdev);
        fclose(file);
    }
    return 0;
}

void files_end(void) {
    for (size_t i = 0; i < device_count; i++) {
        static const char *names[] = {"iommu_group", "vfio-dev/vfio%d/dev", "vfio-dev/vfio%d", "vfio-dev", ""};
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            char name[64], path[256];
            snprintf(name, sizeof name, names[k], devices[i].cdev);
            snprintf(path, sizeof path, "%s/%s/%s", tree, devices[i].name, name);
            remove(path);
        }
    }
    rmdir(tree);
}

/* The real path of one in the devices' directories; false for any other. */
static bool real_path(const char *path, char *real, size_t size) {
    if (strncmp(path, sysfs, sizeof sysfs - 1) || strstr(path, "..")) return false;
    return snprintf(real, size, "%s/%s", tree, path + sizeof sysfs - 1) < (int)size;
}

/* MARK: System calls */

/* Reads a path up to the end of its page at first, as no more need be there. */
static bool fetch_path(pid_t pid, uint64_t address, char *path, size_t size) {
    memset(path, 0, size);
    size_t first = 4096 - (address & 4095);
    if (first > size - 1) first = size - 1;
    if (caller_fetch(pid, address, path, first)) return false;
    if (!memchr(path, 0, first) && first < size - 1) caller_fetch(pid, address + first, path + first, size - 1 - first);
    return true;
}

static struct answer open_path(pid_t pid, const char *path) {
    int number = -1, end = 0;
    if (!strcmp(path, "/dev/iommu")) return open_iommufd(pid);
    if (!strcmp(path, "/dev/vfio/vfio")) return open_container(pid);
    if (sscanf(path, "/dev/vfio/devices/vfio%d%n", &number, &end) == 1 && !path[end]) {
        for (size_t i = 0; i < device_count && !settings.lacks_cdev; i++) {
            if (devices[i].cdev == number) return open_cdev(pid, &devices[i]);
        }
    } else if (sscanf(path, "/dev/vfio/%d%n", &number, &end) == 1 && !path[end]) {
        struct group *group = group_number(number);
        if (group) return open_group(pid, group);
    }
    return (struct answer){refuse(pid, "open", ENOENT, path), -1};
}

static bool answer_open(pid_t pid, const char *path, int flags, struct answer *answer) {
    char real[320];
    /* A name and nothing more, as for the rules of a sandbox. */
    if (flags & O_PATH) return false;
    if (!strncmp(path, "/dev/vfio/", 10) || !strcmp(path, "/dev/iommu")) {
        *answer = open_path(pid, path);
        return true;
    }
    if (!real_path(path, real, sizeof real)) return false;
    /* Installed, and then closed here: a copy of a copy is the same open file. */
    static int last = -1;
    if (last >= 0) close(last);
    last = open(real, (flags & ~O_CREAT) | O_CLOEXEC);
    *answer = (struct answer){last < 0 ? -errno : 0, last};
    return true;
}

static bool answer_stat(pid_t pid, int fd, const char *path, uint64_t buffer, struct answer *answer) {
    char real[320];
    struct stat status;
    if (path && *path) {
        if (!real_path(path, real, sizeof real)) return false;
        *answer = (struct answer){stat(real, &status) ? -errno : 0, -1};
    } else {
        struct device *device = object_of(pid, fd, DEVICE);
        int copy = device ? caller_take_fd(pid, fd) : -1;
        if (copy < 0) return false;
        *answer = (struct answer){fstat(copy, &status) ? -errno : 0, -1};
        close(copy);
        status.st_mode = (status.st_mode & 07777) | S_IFCHR;
        status.st_rdev = makedev(CDEV_MAJOR, (unsigned)device->cdev);
        status.st_size = 0;
    }
    if (!answer->result && caller_store(pid, buffer, &status, sizeof status)) answer->result = -EFAULT;
    return true;
}

static bool answer_link(pid_t pid, const char *path, uint64_t buffer, size_t size, struct answer *answer) {
    char real[320], text[256];
    if (!real_path(path, real, sizeof real)) return false;
    ssize_t length = readlink(real, text, size < sizeof text ? size : sizeof text);
    *answer = (struct answer){length < 0 ? -errno : length, -1};
    if (length > 0 && caller_store(pid, buffer, text, (size_t)length)) answer->result = -EFAULT;
    return true;
}

bool files_answer(const struct seccomp_notif *call, struct answer *answer) {
    const uint64_t *a = (const uint64_t *)call->data.args;
    pid_t pid = (pid_t)call->pid;
    char path[256], real[320];
    switch (call->data.nr) {
    case SYS_openat:
        return fetch_path(pid, a[1], path, sizeof path) && answer_open(pid, path, (int)a[2], answer);
    case SYS_newfstatat:
        return fetch_path(pid, a[1], path, sizeof path) && answer_stat(pid, (int)a[0], path, a[2], answer);
    case SYS_fstat: return answer_stat(pid, (int)a[0], NULL, a[1], answer);
    case SYS_readlinkat:
        return fetch_path(pid, a[1], path, sizeof path) && answer_link(pid, path, a[2], a[3], answer);
    case SYS_faccessat:
        if (!fetch_path(pid, a[1], path, sizeof path) || !real_path(path, real, sizeof real)) return false;
        *answer = (struct answer){access(real, (int)a[2]) ? -errno : 0, -1};
        return true;
#ifdef SYS_readlink
    case SYS_readlink:
        return fetch_path(pid, a[0], path, sizeof path) && answer_link(pid, path, a[1], a[2], answer);
    case SYS_access:
        if (!fetch_path(pid, a[0], path, sizeof path) || !real_path(path, real, sizeof real)) return false;
        *answer = (struct answer){access(real, (int)a[1]) ? -errno : 0, -1};
        return true;
#endif
    default: return false;
    }
}
