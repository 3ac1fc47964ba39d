/* A log of what was asked for: a line each. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

/* Appends to a file from now on; by default the standard error gets it. Returns false when there is no such file. */
bool note_to(const char *path);

/* Writes a line: PID TEXT. */
void note(pid_t pid, const char *format, ...) __attribute__((format(printf, 2, 3)));
