// In the lab: ends its Linux and executes another, without a reset of the machine.
//
//     kexec KERNEL INITRD          with the command line of the one that runs
//     kexec KERNEL INITRD --load   only gets it ready: somebody else executes it

#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return 1;
}

int main(int count, char **arguments)
{
    int loads_only = count == 4 && !strcmp(arguments[3], "--load");
    if (count != 3 && !loads_only)
        return 2;
    char line[4096];
    int kernel = open(arguments[1], O_RDONLY), initrd = open(arguments[2], O_RDONLY);
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(file, line, sizeof line);
    if (kernel < 0 || initrd < 0 || length < 1)
        return fail("kernel, initrd or command line");
    // It ends with a line feed, which becomes the NUL that the kernel wants.
    line[length - 1] = 0;
    if (syscall(SYS_kexec_file_load, kernel, initrd, length, line, 0L))
        return fail("kexec_file_load");
    if (loads_only)
        return 0;
    sync();
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
    return fail("reboot");
}
