// The guest's work on disks that come and go while it runs: virtio disks whose serial number is "plugged".

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include "lab.h"

enum { name_size = 32 };

static int is_plugged(const char *name)
{
    char path[64], serial[32];
    snprintf(path, sizeof path, "/sys/block/%.31s/serial", name);
    read_line(path, serial, sizeof serial);
    return !strcmp(serial, "plugged");
}

static int find_plugged(char *name)
{
    DIR *disks = opendir("/sys/block");
    struct dirent *entry;
    int found = 0;
    while (disks && !found && (entry = readdir(disks)))
        if ((found = is_plugged(entry->d_name)))
            snprintf(name, name_size, "%.31s", entry->d_name);
    if (disks)
        closedir(disks);
    return found;
}

// A driver that lets go of a disk has what it has in hand end first, so what fails means that the disk goes.
static void await_end(const char *name, const char *reason)
{
    for (int i = 0; i < 300; i++) {
        if (!is_plugged(name))
            return;
        usleep(100000);
    }
    FAIL("%s stays, and fails: %s", name, reason);
}

void plugged_work(int unused)
{
    (void)unused;
    for (;;) {
        char name[name_size], path[64];
        usleep(20000);
        if (!find_plugged(name))
            continue;
        snprintf(path, sizeof path, "/dev/%s", name);
        // Its name comes some time after the disk.
        int disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (disk < 0)
            continue;
        add(&shared->plugged);
        await_end(name, strerror(work_while_there(disk, &shared->plugged_blocks)));
        close(disk);
        add(&shared->unplugged);
    }
}
