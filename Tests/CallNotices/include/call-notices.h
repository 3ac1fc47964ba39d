/* A command whose system calls another process answers in the kernel's place (seccomp user notification,
 * Documentation/userspace-api/seccomp_filter.rst of the kernel's): the simulated hosts of the tests. */
#pragma once
#include <linux/filter.h>
#include <poll.h>
#include <stddef.h>
#include <sys/types.h>

/* Starts COMMAND, which ends with the caller, under a filter of COUNT instructions. *LISTENER gets the descriptor over
 * which its calls come, and those of what it executes and forks; -1 if there is none. Returns its PID, or -1. */
pid_t call_notices_start(char **command, const struct sock_filter *code, size_t count, int *listener);

/* The same under a filter that has these calls come, and ioctl(2) with requests of a TYPE (_IOC_TYPE). */
pid_t call_notices_start_requests(
    char **command, const unsigned *calls, size_t count, unsigned char type, int *listener);

/* Sends what answers a call: a result, or an errno below 0. */
void call_notices_answer(int listener, unsigned long long call, long result);

/* Lets a call go on in the kernel. */
void call_notices_pass(int listener, unsigned long long call);

/* Whether a poll of the listener says that the last process has ended. */
int call_notices_ended(const struct pollfd *state);

/* Waits for the command, whose processes have all ended. Returns the exit status to end with. */
int call_notices_status(pid_t child);
