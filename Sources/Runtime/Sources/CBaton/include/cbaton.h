/* The few kernel interfaces that Swift's Glibc import does not reach, and the
 * C side of the module interface. */
#ifndef CBATON_H
#define CBATON_H

#include <stdint.h>
#include "baton-module.h"
#include <signal.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <sys/uio.h>

/* memfd_create(2). Returns an fd with FD_CLOEXEC, or -1 and errno. */
int cbaton_memfd_create(const char *name, unsigned extra_flags);

/* What this process is to execute, and the program to get. All borrowed. */
struct cbaton_execution {
    char *const *argv;        /* argv[0] is searched in PATH, as execvp does */
    char *const *environment; /* NAME=VALUE, NULL behind the last */
    const int *fds;           /* that the program inherits, beside 0, 1 and 2 */
    size_t count;
    unsigned long timer_slack; /* nanoseconds, prctl(2) */
    pid_t placeholder;         /* the parent, when that is one: the child is its child then; else 0 */
    /* Called in this process, while the child waits: with the child's PID before the exec, and with this process's when the
     * exec has failed. Waits for nothing; NULL for nobody. */
    void (*will_be_owner)(pid_t process);
};

#define CBATON_EXECUTED 1
#define CBATON_EXEC_IS_LATE 2
/* Executes a program in this process, which keeps its PID, and goes on in a child
 * that keeps everything else: memory, descriptors, signal handlers and mask. The
 * memory is not copied. The program has SIGINT, SIGTERM and SIGHUP blocked: one
 * that comes before it can end in order waits until it can.
 *
 * Returns in the child, when the exec is done: CBATON_EXECUTED, and a pidfd of the
 * process in PROCESS, to be closed by the caller. Or CBATON_EXEC_IS_LATE when it
 * took more than LIMIT nanoseconds; the process has been killed. Or, in this
 * process, -1 and errno: nothing has changed.
 *
 * No other thread may hold a lock that is needed afterwards: the exec ends all. */
int cbaton_execute_beside(const struct cbaton_execution *what, int64_t limit, int *process);

/* The signals by which an operator ends a VMM, and what lets them through. */
void cbaton_stop_signals(sigset_t *set);
void cbaton_accept_stop_signals(void);

/* Waits up to LIMIT nanoseconds for a child of this process to end. Returns 1
 * when there is no such child any more: it has been waited for, or was none; 0
 * when it still is there. */
int cbaton_await_child(pid_t child, int64_t limit);

/* Whether PID is a child of this process that nobody has waited for. */
int cbaton_is_child(pid_t pid);

/* Makes this process a placeholder for its child VMM, which has the guest: what is
 * left of it has no descriptors, threads or memory of a VMM, passes signals to stop on,
 * and ends when the VM does, with its status or by its signal. It takes the end of
 * every child. As soon as it stands it sends a zero byte over READY, a socket; -1 when
 * nobody waits for that. PID 1 of a namespace whose child VMM is not ends with the last
 * of its children. A process without such a child ends at once. */
void cbaton_become_placeholder(pid_t vmm, int ready) __attribute__((noreturn));
/* The same in a process that was executed for it; returns in any other. The library
 * calls it when it is loaded. */
void cbaton_be_placeholder_if_asked(void);
/* Tells a placeholder that its child VMM may have the guest from now on, beside those
 * that it knows, or that it has not. Signals are for the first as long as that lives. */
void cbaton_tell_placeholder(pid_t placeholder, pid_t vmm, int may_have_guest);

/* A helper: a program that the VMM has started, and that is to end with it however that ends. See helper_guard.c. */
#define CBATON_HELPER_SOCKET "socket" /* in its directory: where it serves */
#define CBATON_HELPER_PID "pid"       /* in its directory: what it writes when it serves */
#define CBATON_HELPER_LINE 1024       /* the most bytes of one line that it says */
/* Words before a program that is to be in a sandbox of its guard's making, and what files it may write beside those of its
 * directory. */
#define CBATON_HELPER_CONFINED "-confined"
#define CBATON_HELPER_WRITES "-writes="
#define CBATON_HELPER_WRITES_ANYTHING "-writes-anything"
/* What the guard of a helper sends, one a message: the kind in a byte, and what goes with it. */
#define CBATON_HELPER_STARTED 1 /* its PID, an int */
#define CBATON_HELPER_READY 2
#define CBATON_HELPER_SAYS 3 /* a line of its standard error */
#define CBATON_HELPER_ENDED 4 /* its wait status, an int; nothing comes behind it */
/* What the VMM sends: the helper is to end, and its directory to be removed. The end of the socket says the same. */
#define CBATON_HELPER_END 5
/* Starts a helper: argv[0] is searched in PATH. It gets an empty standard input and output. DIRECTORY is the caller's to
 * make, and for this helper only; the guard removes it when the helper is not to be started again. Returns a
 * SOCK_SEQPACKET socket to the guard, with O_NONBLOCK and FD_CLOEXEC, whose last copy's end ends the helper, and the PID
 * of the guard, a child to be waited for; or a negative errno value. */
int cbaton_start_helper(const char *directory, char *const argv[], pid_t *guard);
/* In a process that was executed as a guard: is one. Returns in any other. The library calls it when it is loaded. */
void cbaton_be_helper_guard_if_asked(void);

/* A 64-bit word that processes share. */
static inline uint64_t cbaton_load64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_SEQ_CST); }
static inline void cbaton_store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_SEQ_CST); }
/* Changes it from OLD to NEW. Returns whether it was OLD. */
static inline int cbaton_change64(void *p, uint64_t old, uint64_t new_) {
    return __atomic_compare_exchange_n((uint64_t *)p, &old, new_, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

#define CBATON_MFD_ALLOW_SEALING 2u
/* Of huge pages; the binary logarithm of their size stands from bit CBATON_MFD_HUGE_SHIFT on. */
#define CBATON_MFD_HUGETLB 4u
#define CBATON_MFD_HUGE_SHIFT 26
/* Seals a memfd against shrinking, growing and any further seal: whoever is given
 * it can neither cut it off under us nor keep a later process from writing to it.
 * Returns 0, or -1 and errno. */
int cbaton_seal_size(int fd);
/* True when new shared mappings of a memfd cannot be written to. */
int cbaton_is_write_sealed(int fd);

/* Mappings of files that others may shorten, or whose file system may have no
 * room for a page. An access to such a page raises SIGBUS, which would end this
 * process; in a guarded mapping the page becomes one of our own instead, and the
 * access is carried out there. One handler serves the whole process. */
#define CBATON_GUARD_RAM 0 /* guest RAM: zeroes, and the loss is told */
#define CBATON_GUARD_DEVICE 1 /* device memory: all ones, as of a device that is gone */
/* Guards a mapping; START is page aligned. Returns 0, or -1 and errno. */
int cbaton_guard_add(void *start, size_t length, int kind);
/* For a handler of SIGBUS: puts memory of our own in the place of what was lost.
 * Returns 0 for an address that is not guarded. */
int cbaton_guard_bus_error(const siginfo_t *info);
/* Ends it, before the mapping goes. Does nothing for what is not guarded. */
void cbaton_guard_remove(const void *start);
/* Whether a page of the mapping that begins at START has been replaced. */
int cbaton_guard_has_lost(const void *start);
/* An eventfd that counts the pages of guest RAM that were replaced; -1 before
 * the first guard. */
int cbaton_guard_wake_fd(void);
/* Whether FD, which another process has given, is a file with SIZE bytes at
 * OFFSET, and one whose pages come without that process (not of FUSE). */
int cbaton_guard_accepts(int fd, uint64_t offset, uint64_t size);

/* The extended attribute user.NAME of a file. Get returns its length, at most
 * SIZE; -1 and errno: ENODATA without it, ENOTSUP where there can be none. The
 * others return 0, or -1 and errno; to remove what is not there is no error. */
ssize_t cbaton_get_attribute(int fd, const char *name, void *value, size_t size);
int cbaton_set_attribute(int fd, const char *name, const void *value, size_t size);
int cbaton_remove_attribute(int fd, const char *name);

/* fallocate(2) with FALLOC_FL_PUNCH_HOLE|KEEP_SIZE, or FALLOC_FL_ZERO_RANGE.
 * Return 0, or -1 and errno. */
int cbaton_punch_hole(int fd, off_t offset, off_t length);
int cbaton_zero_range(int fd, off_t offset, off_t length);
/* pwritev2(2); with DURABLE the data is durable when it returns (RWF_DSYNC). */
ssize_t cbaton_pwritev(int fd, const struct iovec *vectors, int count, off_t offset, int durable);
/* Sets or clears O_DIRECT of an open file, which all its descriptors share; sets it only if it is not as wanted. Returns 0,
 * or -1 and errno. */
int cbaton_set_direct(int fd, int is_direct);
/* What O_DIRECT asks of an open file: the alignment in bytes of memory, and of offsets and lengths. Returns 0, or -1
 * when nothing tells. */
int cbaton_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);

/* Locks a range of a file for this open file description, with whatever shares it (F_OFD_SETLK): KIND is F_RDLCK,
 * F_WRLCK or F_UNLCK. Returns 0, or -1 and errno, EAGAIN when another has a lock in the way. */
int cbaton_lock_range(int fd, int kind, off_t start, off_t length);
/* Whether another open file description has a lock in a range, of whatever kind: 1 or 0, or -1 and errno. */
int cbaton_is_range_locked(int fd, off_t start, off_t length);

/* The arguments of main, which neither /proc nor anybody's good will is needed for. Valid as long as the process. */
int cbaton_argument_count(void);
const char *cbaton_argument(int index);
char *const *cbaton_arguments(void); /* all, NULL behind the last */

/* Opens PATH refusing symbolic links in any component (openat2(2) with
 * RESOLVE_NO_SYMLINKS). Returns an O_CLOEXEC fd or -1 and errno. */
int cbaton_open_nofollow(const char *path, int flags);
/* The same, with the mode of a file that O_CREAT makes. */
int cbaton_make_nofollow(const char *path, int flags, mode_t mode);

/* getrandom(2) without flags. Returns the bytes written, or -1 and errno. */
ssize_t cbaton_getrandom(void *buffer, size_t length);

/* madvise(2): huge pages wherever they fit. */
#define CBATON_MADV_HUGEPAGE 14
/* MADV_POPULATE_WRITE of Linux 5.14. */
#define CBATON_MADV_POPULATE_WRITE 23

/* lseek(2): to the next bytes that a file has, or has not. */
#define CBATON_SEEK_DATA 3
#define CBATON_SEEK_HOLE 4

/* How many processors this thread may run on; 1 when that cannot be told. */
int cbaton_processors(void);

/* Lets a processor that waits for another do so, for about a microsecond. */
static inline void cbaton_pause(void) {
    for (int i = 0; i < 20; i++)
#if defined(__x86_64__)
        __asm__ volatile("pause");
#elif defined(__aarch64__)
        __asm__ volatile("isb");
#else
        __asm__ volatile("" ::: "memory");
#endif
}

/* Full memory barrier towards other threads and processes. */
static inline void cbaton_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static inline uint16_t cbaton_load_acquire16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
static inline void cbaton_store_release16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }

/* CLOCK_MONOTONIC and CLOCK_REALTIME in nanoseconds. */
int64_t cbaton_monotonic_ns(void);
int64_t cbaton_realtime_ns(void);

/* Sets FD_CLOEXEC on every open fd from LOW up (close_range(2)). Returns 0, or
 * -1 and errno. */
int cbaton_cloexec_from(unsigned low);

/* Closes every fd from FIRST to LAST that is open (close_range(2)). */
void cbaton_close_range(unsigned first, unsigned last);

/* dlopen with RTLD_NOW|RTLD_LOCAL|RTLD_NODELETE. */
void *cbaton_dlopen(const char *path);

/* The CRC-32C (Castagnoli) of SIZE bytes, continued from CRC (0 to start). */
uint32_t cbaton_crc32c(uint32_t crc, const void *data, size_t size);

/* True when the signal is ignored. */
int cbaton_is_ignored(int signal);

/* Forks into the background: the child returns the fd to report readiness on
 * with cbaton_daemon_ready; the parent waits for that and exits with the
 * status that the child reports, or 1 when it dies first. Returns -1 and errno
 * when the fork fails. The process must be single-threaded. */
int cbaton_daemonize(void);
/* Lets the parent of cbaton_daemonize exit with STATUS; standard input, output
 * and error go to /dev/null. */
void cbaton_daemon_ready(int fd, int status);

/* The stack of the thread that cbaton_call_bounded makes, in bytes. */
#define CBATON_BOUNDED_STACK (1 << 20)

/* Calls BODY with CONTEXT and each index from FIRST up to COUNT, one after the
 * other, in a thread that the caller waits for, each for LIMIT nanoseconds or a
 * little more. A call that takes longer is left behind: its thread is stopped
 * wherever it is and never goes on, and CONTEXT must stay as long as the process.
 * One that crashes is left behind too, and SIGNAL says by which signal; else it is 0.
 * Without memory for a thread the calls are made in the caller's, without limit.
 * Returns the index of the call that was left behind, or COUNT. */
uint32_t cbaton_call_bounded(
    void (*body)(void *context, uint32_t index), void *context, uint32_t first, uint32_t count, int64_t limit,
    int *signal);

/* Starts argv[0], searched in PATH, which inherits FDS, an empty standard input
 * and output, and STANDARD_ERROR, whatever their FD_CLOEXEC. It is to be waited
 * for. Returns 0 and its PID, or an errno. */
int cbaton_spawn(char *const argv[], const int *fds, size_t count, int standard_error, pid_t *pid);

/* Calls BODY with CONTEXT in a thread of its own, which has a copy of all descriptors:
 * what it opens and closes is nobody else's, and what others do with theirs is nothing to
 * it. From 3 up all of its own have FD_CLOEXEC. Every signal is blocked there. Returns
 * when the copy is made: 0, or an errno value, and BODY is not called. */
int cbaton_run_apart(void (*body)(void *context), void *context);

/* Starts a thread in which every signal is blocked, to be joined with pthread_join(3). Returns 0 or an errno value. */
int cbaton_start_thread(pthread_t *thread, void (*body)(void *context), void *context);

/* Calls BODY with CONTEXT at a nice value that is INCREMENT higher than the caller's, in a
 * thread that has ended when this returns; or in the caller, where there can be no thread.
 * The thread begins under SCHED_IDLE (sched(7)). When it waits for a processor longer than twice the time
 * that it has had one, it goes on under SCHED_OTHER, at its nice value. */
void cbaton_run_nicely(int increment, void (*body)(void *context), void *context);

/* A program that is run, and with it whatever that starts in turn, however it goes to
 * the background: all of it has one process above it, the supervisor, which ends it. */
struct cbaton_trial {
    char *const *argv;         /* argv[0] is searched in PATH */
    char *const *environment;  /* NAME=VALUE, NULL behind the last */
    const int *fds;            /* that only the program is to have: closed for the supervisor */
    size_t count;
    unsigned long timer_slack; /* the program's, in nanoseconds (prctl(2)) */
    sigset_t mask;             /* the program's blocked signals */
    int control; /* when its other end is closed, be it by the caller's end, everything is killed */
    int report;  /* gets, as 32 bits each: an errno value or 0, the supervisor's PID and the program's; the
                    program's wait status when that has ended; and its end when all have */
};

/* Runs such a program, as a session of its own, until all of it has ended. For a thread
 * that was started apart: the program inherits its descriptors, of those from 3 up the ones without
 * FD_CLOEXEC. Takes no other child's end, and changes nothing about SIGCHLD. The supervisor,
 * of which only REPORT tells, is a child to be reaped. Returns 0, or an errno value when there is none. */
int cbaton_run_trial(const struct cbaton_trial *trial);

/* Kills, beside the caller, all processes that have VARIABLE (NAME=VALUE, up to 127 bytes) in the environment that they
 * were executed with, but the caller and OTHER. */
void cbaton_kill_started(const char *variable, pid_t other);

/* Waits for the end of one child, which may be discarded already. */
void cbaton_reap(pid_t pid);

/* The calling thread's timer slack in nanoseconds (prctl(2)). */
unsigned long cbaton_timer_slack(void);
int cbaton_set_timer_slack(unsigned long nanoseconds);

/* Seals a memfd against any change from here on. Returns 0, or -1 and errno. */
int cbaton_seal_contents(int fd);
/* Whether a descriptor is a file with such a seal. */
int cbaton_is_sealed(int fd);

/* An eventfd, listening socket or other object of the kernel without a name in the
 * file system says by its link in /proc what it is: whether that begins with PREFIX. */
int cbaton_link_begins(int fd, const char *prefix);

/* Whether a descriptor of one process and one of another are of one open file
 * (kcmp(2)). 0 also when that cannot be known. */
int cbaton_is_same_file(pid_t a, int fd_of_a, pid_t b, int fd_of_b);

/* pidfd_open(2). Returns an fd with FD_CLOEXEC, or -1 and errno. */
int cbaton_pidfd_open(pid_t pid);
/* pidfd_send_signal(2) without further information. */
int cbaton_pidfd_send_signal(int pidfd, int signal);
/* The wait status of a process that has ended and was waited for by its parent (PIDFD_GET_INFO, Linux 6.15). Returns -1
 * while it was not, and where the kernel does not tell. */
int cbaton_pidfd_status(int pidfd);

/* True when the file system of PATH keeps its files in memory only (tmpfs,
 * hugetlbfs), or cannot be told. */
int cbaton_is_memory_filesystem(const char *path);

/* True when a file is in such a file system, of small pages (tmpfs, memfd). */
int cbaton_is_memory_file(int fd);

/* Bytes of a page of a file in huge pages (hugetlbfs); 0 for any other file. */
long cbaton_huge_page_size(int fd);

/* mbind(2), which has pages that are there already moved, and fails where they cannot be. MASK has a bit of each node of
 * the first MASK_BITS. Returns 0, or -1 and errno. */
int cbaton_mbind(void *start, size_t length, int mode, const unsigned long *mask, unsigned long mask_bits);

/* Moves a mapping of LENGTH bytes to NEW, in the place of what is there (mremap(2)). Returns 0, or -1 and
 * errno; nothing may be there then. */
int cbaton_move_mapping(void *old, size_t length, void *new_);

/* True when the process has privileges that its parent did not have (AT_SECURE):
 * its environment is then not to be trusted. */
int cbaton_is_privileged(void);

/* True for uid 0 and for the effective user. */
int cbaton_is_root_or_self(unsigned uid);

/* Who made the other end of a connected unix socket, or listened for it
 * (SO_PEERCRED): its user, and its PID, 0 when that is of another namespace.
 * Returns 0, or -1 and errno. */
int cbaton_peer(int socket, pid_t *pid, uint32_t *uid);

/* accept4(2) with FD_CLOEXEC and O_NONBLOCK. Returns the fd, or -1 and errno. */
int cbaton_accept(int listener);

/* The most descriptors that one message can carry here. */
#define CBATON_MESSAGE_FDS 16

/* sendmsg(2) with COUNT descriptors (SCM_RIGHTS), which stay the caller's.
 * MSG_NOSIGNAL is added to FLAGS. Returns the bytes sent, or -1 and errno; the
 * descriptors go with the first byte. */
ssize_t cbaton_send_fds(int socket, const void *data, size_t length, const int *fds, size_t count, int flags);

/* recvmsg(2), with room for CBATON_MESSAGE_FDS descriptors at FDS, which are
 * the caller's to close and have FD_CLOEXEC. *COUNT says how many came, or is
 * -1 when there were more than could be taken: then none is open. Returns the
 * bytes received, 0 at the end, or -1 and errno. */
ssize_t cbaton_receive_fds(int socket, void *data, size_t length, int *fds, int *count, int flags);

/* A pair of connected stream sockets of the UNIX domain, with FD_CLOEXEC.
 * Returns 0, or -1 and errno. */
int cbaton_socketpair(int ends[2]);
/* Receives from a socket with SO_PASSCRED. `sender` gets the PID of whoever has sent it, and stays as it is when nothing
 * says. Descriptors that come along are not taken. Returns the bytes, 0 at the end, or -1 and errno. */
ssize_t cbaton_receive_from(int socket, void *data, size_t length, pid_t *sender);

/* An eventfd with the count 0, FD_CLOEXEC and O_NONBLOCK; -1 and errno on
 * failure. */
int cbaton_eventfd(void);
/* Takes the count of an eventfd without ever blocking, whatever flags the
 * processes that share it have set. Returns it, or 0 when there is none. */
uint64_t cbaton_eventfd_take(int fd);
/* Counts one up; never blocks on an eventfd made by cbaton_eventfd. */
void cbaton_eventfd_add(int fd);

/* ppoll(2) with a time in nanoseconds; negative: without end. */
int cbaton_poll(struct pollfd *states, size_t count, int64_t nanoseconds);

/* Opens a pseudo-terminal: a master fd with FD_CLOEXEC and O_NONBLOCK, and the
 * slave's path. The slave is in raw mode and hung up until someone opens it.
 * Returns -1 and errno on failure. */
int cbaton_open_pty(char *slave_path, size_t size);
// The slave's path of an open master; 0, or an errno value.
int cbaton_pty_name(int master, char *slave_path, size_t size);

/* An inotify fd that becomes readable when someone opens PATH, with FD_CLOEXEC
 * and O_NONBLOCK; -1 and errno on failure. */
int cbaton_watch_opens(const char *path);

/* A lock that is fair enough for a thread that takes it again at once; see VMLock. */
struct cbaton_vm_lock;
struct cbaton_vm_lock *cbaton_vm_lock_make(void); /* NULL: no memory */
void cbaton_vm_lock_free(struct cbaton_vm_lock *lock);
void cbaton_vm_lock_acquire(struct cbaton_vm_lock *lock);
void cbaton_vm_lock_release(struct cbaton_vm_lock *lock);
/* Waits up to 0.1 ms for one who waits for the lock to get it. */
void cbaton_vm_lock_yield(struct cbaton_vm_lock *lock);

/* ---- The sandbox (BatonModules/Sandbox). */

/* One system call by its name, which a zero byte ends, and its number on this processor. */
struct cbaton_system_call {
    char name[28];
    uint32_t number;
};
/* Those that a VMM of this runtime needs; the last one has no name. Read from the file by the wardens of older VMMs. */
extern const struct cbaton_system_call baton_system_calls[];
const struct cbaton_system_call *cbaton_system_calls(void);
/* -1, or NULL, for one that is not known. */
int cbaton_system_call_number(const char *name);
const char *cbaton_system_call_name(int number);

/* Landlock: its version, a ruleset, rules, and its use for the calling thread. Return -1 and errno. FILES, NET and
 * SCOPED are what the ruleset is about, in the kernel's bits (landlock(7)). */
int cbaton_landlock_version(void);
int cbaton_landlock_make(uint64_t files, uint64_t net, uint64_t scoped);
int cbaton_landlock_allow(int ruleset, int fd, uint64_t access);
int cbaton_landlock_allow_port(int ruleset, uint16_t port, uint64_t access);
int cbaton_landlock_enter(int ruleset);

/* Whether this is a build for a sanitizer, which writes its findings, and makes system calls, as it likes. */
int cbaton_is_checked(void);
/* PR_SET_NO_NEW_PRIVS. Returns 0, or -1 and errno. */
int cbaton_no_new_privileges(void);
int cbaton_has_no_new_privileges(void);

/* An instruction of a classic BPF program. */
struct cbaton_instruction {
    uint16_t code;
    uint8_t if_true, if_false;
    uint32_t operand;
};
/* AUDIT_ARCH_... of this processor. */
uint32_t cbaton_audit_architecture(void);
/* Whether the kernel has seccomp filters whose decisions another process can make. */
int cbaton_has_listeners(void);
/* Puts a filter on the calling thread. Returns the listener's descriptor, which is the caller's, or 0 without one; -1 and
 * errno. */
int cbaton_filter(const struct cbaton_instruction *program, size_t count, int with_listener);

/* A system call that a task waits with for a decision. */
struct cbaton_call {
    uint64_t id;
    pid_t task;
    int32_t number;
    uint32_t architecture;
};
/* Return 0, or -1 and errno, ENOENT when the task has gone. CODE is 0 to let the call pass, or an errno value. */
int cbaton_next_call(int listener, struct cbaton_call *call);
int cbaton_answer_call(int listener, const struct cbaton_call *call, int code);
int cbaton_is_waiting(int listener, const struct cbaton_call *call);

/* Makes a copy of this process, which has one thread, to be the warden of its sandbox: without descriptors but one end of
 * a new socket (SOCK_SEQPACKET) and, unless IS_QUIET, standard error; in a session of its own, with the name and words of a
 * warden, and no child of this process. Returns 0 in the copy, here its PID; each has its end in SOCKET. Or -1 and errno. */
pid_t cbaton_fork_warden(int is_quiet, int *socket);

/* What this process has mapped to run, by the names that the dynamic linker has for it: up to COUNT, borrowed. Returns how
 * many there are. */
size_t cbaton_libraries(const char **names, size_t count);

/* Keeps these capabilities (bits by their numbers) of those that the process has, and what it executes. Returns 0, or
 * -1 and errno. */
int cbaton_keep_capabilities(uint64_t kept);
/* Return 0, or -1, with errno but for the first. NAME is NULL for a user without a name. */
int cbaton_find_user(const char *name, uint32_t *uid, uint32_t *gid);
int cbaton_set_groups(const char *name, uint32_t gid);
int cbaton_become_user(uint32_t uid, uint32_t gid);
int cbaton_change_root(const char *path);
/* Whether the process has no other thread; -1 without /proc. */
int cbaton_is_alone(void);

#endif
