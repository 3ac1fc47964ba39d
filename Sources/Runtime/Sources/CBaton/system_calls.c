/* The system calls that a VMM needs: what the sandbox of a VM that starts with this runtime lets pass.
 *
 * The table is data with an exported name, so that the warden of a VM which an older Baton has started can read it from
 * the file of a newer runtime, without running anything of it. The layout of an entry never changes. */
#define _GNU_SOURCE
#include "cbaton.h"

#include <string.h>
#include <sys/syscall.h>

#define CALL(name) {#name, SYS_##name}

const struct cbaton_system_call baton_system_calls[] = {
    /* Descriptors and what is behind them. */
    CALL(read), CALL(write), CALL(readv), CALL(writev), CALL(pread64), CALL(pwrite64), CALL(preadv), CALL(pwritev),
    CALL(preadv2), CALL(pwritev2), CALL(close), CALL(close_range), CALL(lseek), CALL(dup), CALL(dup3), CALL(fcntl),
    CALL(ioctl), CALL(pipe2), CALL(eventfd2), CALL(ppoll), CALL(pselect6), CALL(epoll_create1), CALL(epoll_ctl),
    CALL(epoll_pwait), CALL(epoll_pwait2), CALL(timerfd_create), CALL(timerfd_settime), CALL(timerfd_gettime), CALL(signalfd4),
    CALL(inotify_init1), CALL(inotify_add_watch), CALL(inotify_rm_watch), CALL(memfd_create), CALL(ftruncate),
    CALL(fallocate), CALL(fsync), CALL(fdatasync), CALL(sync_file_range), CALL(fadvise64), CALL(flock), CALL(fchmod),
    CALL(fstat), CALL(fstatfs), CALL(fgetxattr), CALL(fsetxattr), CALL(fremovexattr), CALL(splice), CALL(sendfile),
    CALL(copy_file_range),
    /* Names. What they reach is Landlock's to say. Calls that change a file's owner, mode, times or attributes by its
     * name are not here: Landlock does not know them. */
    CALL(openat), CALL(openat2), CALL(statx), CALL(newfstatat), CALL(statfs), CALL(faccessat), CALL(faccessat2),
    CALL(readlinkat), CALL(getdents64), CALL(unlinkat), CALL(renameat), CALL(renameat2), CALL(mkdirat), CALL(getcwd),
    CALL(chdir), CALL(fchdir), CALL(umask),
    /* Sockets. See SeccompFilter.swift for which; to connect one is the warden's. */
    CALL(socket), CALL(socketpair), CALL(bind), CALL(listen), CALL(accept), CALL(accept4), CALL(shutdown),
    CALL(sendto), CALL(recvfrom), CALL(sendmsg), CALL(recvmsg), CALL(getsockopt), CALL(setsockopt), CALL(getsockname),
    CALL(getpeername),
    /* Memory. */
    CALL(brk), CALL(mmap), CALL(munmap), CALL(mremap), CALL(mprotect), CALL(madvise), CALL(msync), CALL(mincore),
    CALL(mlock), CALL(mlock2), CALL(munlock), CALL(mbind), CALL(set_mempolicy), CALL(get_mempolicy), CALL(membarrier),
    /* Threads, processes and what is executed for an update: all of it stays in the sandbox. */
    CALL(clone), CALL(execve), CALL(execveat), CALL(exit), CALL(exit_group), CALL(wait4), CALL(waitid), CALL(getpid),
    CALL(getppid), CALL(gettid), CALL(getpgid), CALL(setpgid), CALL(getsid), CALL(setsid), CALL(set_tid_address),
    CALL(set_robust_list), CALL(get_robust_list), CALL(rseq), CALL(futex), CALL(prctl), CALL(seccomp), CALL(capget),
    CALL(getuid), CALL(geteuid), CALL(getgid), CALL(getegid), CALL(getresuid), CALL(getresgid), CALL(getgroups),
    CALL(kcmp), CALL(pidfd_open), CALL(pidfd_send_signal), CALL(prlimit64), CALL(getrusage), CALL(times),
    CALL(sched_yield), CALL(sched_getaffinity), CALL(sched_getparam), CALL(sched_getscheduler), CALL(sched_getattr),
    CALL(sched_get_priority_max), CALL(sched_get_priority_min), CALL(getpriority), CALL(getcpu),
    /* Their order of precedence; not with resourcecontrol=deny. */
    CALL(sched_setaffinity), CALL(sched_setparam), CALL(sched_setscheduler), CALL(sched_setattr), CALL(setpriority),
    /* Signals; whom they reach is Landlock's to say. */
    CALL(rt_sigaction), CALL(rt_sigprocmask), CALL(rt_sigreturn), CALL(rt_sigpending), CALL(rt_sigsuspend),
    CALL(rt_sigtimedwait), CALL(rt_sigqueueinfo), CALL(rt_tgsigqueueinfo), CALL(sigaltstack), CALL(kill), CALL(tkill),
    CALL(tgkill), CALL(restart_syscall),
    /* Time, and what the system says of itself. */
    CALL(clock_gettime), CALL(clock_getres), CALL(clock_nanosleep), CALL(nanosleep), CALL(gettimeofday),
    CALL(setitimer), CALL(getitimer), CALL(timer_create), CALL(timer_settime), CALL(timer_delete), CALL(getrandom),
    CALL(uname), CALL(sysinfo),
#if defined(__x86_64__)
    /* What these were called before; the C library still uses some. */
    CALL(open), CALL(stat), CALL(lstat), CALL(access), CALL(readlink), CALL(unlink), CALL(rename), CALL(mkdir),
    CALL(rmdir), CALL(pipe), CALL(dup2), CALL(poll), CALL(select), CALL(epoll_wait), CALL(epoll_create),
    CALL(eventfd), CALL(fork), CALL(vfork), CALL(getpgrp), CALL(arch_prctl), CALL(alarm), CALL(time), CALL(pause),
    CALL(getrlimit), CALL(creat),
#endif
    {"", 0},
};

/* Others that options and roles speak of, so that they have names. */
static const struct cbaton_system_call others[] = {
    CALL(connect), CALL(sendmmsg), CALL(recvmmsg), CALL(clone3), CALL(unshare), CALL(setns), CALL(ptrace),
    CALL(process_vm_readv), CALL(process_vm_writev), CALL(pidfd_getfd), CALL(mount), CALL(umount2), CALL(pivot_root),
    CALL(chroot), CALL(reboot), CALL(kexec_load), CALL(init_module), CALL(finit_module), CALL(delete_module),
    CALL(bpf), CALL(perf_event_open), CALL(userfaultfd), CALL(keyctl), CALL(add_key), CALL(request_key), CALL(acct),
    CALL(swapon), CALL(swapoff), CALL(syslog), CALL(settimeofday), CALL(clock_settime), CALL(sethostname),
    CALL(open_by_handle_at), CALL(name_to_handle_at), CALL(personality), CALL(setuid), CALL(setgid), CALL(setreuid),
    CALL(setregid), CALL(setresuid), CALL(setresgid), CALL(setgroups), CALL(setfsuid), CALL(setfsgid), CALL(capset),
    CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(fchmodat), CALL(fchownat), CALL(fchown),
    CALL(linkat), CALL(symlinkat), CALL(mknodat), CALL(truncate), CALL(utimensat), CALL(setxattr), CALL(lsetxattr),
    CALL(removexattr), CALL(lremovexattr), CALL(quotactl), CALL(setrlimit),
#if defined(__x86_64__)
    CALL(chmod), CALL(chown), CALL(lchown), CALL(link), CALL(symlink), CALL(mknod), CALL(iopl), CALL(ioperm),
    CALL(modify_ldt), CALL(uselib), CALL(ustat), CALL(sysfs), CALL(_sysctl),
#endif
    {"", 0},
};

const struct cbaton_system_call *cbaton_system_calls(void) { return baton_system_calls; }

static int find(const struct cbaton_system_call *table, const char *name) {
    for (; table->name[0]; table++)
        if (strncmp(table->name, name, sizeof table->name) == 0) return (int)table->number;
    return -1;
}

int cbaton_system_call_number(const char *name) {
    int number = find(baton_system_calls, name);
    return number >= 0 ? number : find(others, name);
}

const char *cbaton_system_call_name(int number) {
    const struct cbaton_system_call *tables[] = {baton_system_calls, others};
    for (int i = 0; i < 2; i++)
        for (const struct cbaton_system_call *call = tables[i]; call->name[0]; call++)
            if ((int)call->number == number) return call->name;
    return NULL;
}
