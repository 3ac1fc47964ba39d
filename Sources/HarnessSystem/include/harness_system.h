/* Kernel interfaces by which the harness looks into a VMM from outside, and
 * which Swift's import of the C library does not reach. */
#ifndef HARNESS_SYSTEM_H
#define HARNESS_SYSTEM_H

#include <spawn.h>
#include <stdint.h>
#include <sys/types.h>

/* Duplicates descriptor FD of process PID into this one (pidfd_getfd(2)): the
 * same open file description. Returns an fd with FD_CLOEXEC, or -1 and errno. */
int harness_borrow_fd(pid_t pid, int fd);

/* Whether descriptor FD of this process and OTHER_FD of process PID are one
 * open file description (kcmp(2)): 1 or 0, or -1 and errno. */
int harness_same_file(int fd, pid_t pid, int other_fd);

/* Limits the size of files that process PID writes from now on (the soft
 * RLIMIT_FSIZE); UINT64_MAX lifts the limit. Returns 0, or -1 and errno. */
int harness_limit_file_size(pid_t pid, uint64_t bytes);

/* Has a program that is to be spawned close every descriptor from FROM up
 * (posix_spawn_file_actions_addclosefrom_np). Returns 0 or an error number. */
int harness_spawn_closes_from(posix_spawn_file_actions_t *actions, int from);

/* Raises the soft limit of this process' descriptors to COUNT, or the hard
 * limit if that is lower. Returns 0, or -1 and errno. */
int harness_allow_descriptors(uint64_t count);

/* Makes this process the parent of its descendants that lose theirs
 * (PR_SET_CHILD_SUBREAPER). Returns 0, or -1 and errno. */
int harness_adopt_orphans(void);

/* Makes a pipe that no child inherits (pipe2(2)): 0, or -1 and errno. */
int harness_pipe(int ends[2]);

/* Opens /dev/kvm and makes a VM. Returns 0, an error number, or the negative
 * version of the interface where that is not 12. */
int harness_try_kvm(void);

/* Takes a mounted file system out of sight; it goes when nobody uses it any more
 * (umount2(2), MNT_DETACH). Returns 0, or -1 and errno. */
int harness_unmount(const char *path);

/* landlock_create_ruleset(2): the version of Landlock; -1 and errno without it. */
int harness_landlock_version(void);

#endif
