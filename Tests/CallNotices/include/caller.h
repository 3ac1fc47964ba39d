/* The process that makes a system call which another one answers. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The process that a thread is of: descriptors and memory are the process'. */
pid_t caller_process(pid_t thread);

/* Memory of the process; 0, or -1 when it is not there. */
int caller_fetch(pid_t pid, uint64_t address, void *data, size_t size);
int caller_store(pid_t pid, uint64_t address, const void *data, size_t size);

/* A copy of a descriptor of the process, or -1. */
int caller_take_fd(pid_t pid, int fd);

/* Answers a call with a copy of FD, with FD_CLOEXEC. Returns 0, also when the caller has gone, or -1. */
int caller_give_fd(int listener, uint64_t call, int fd);
