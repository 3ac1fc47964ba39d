#ifndef CBATON_SANITIZERS_H
#define CBATON_SANITIZERS_H

/* Of a function that never returns, or not on the stack of a thread: it executes a program, ends a process or jumps. What
 * AddressSanitizer notes of its frame would stay, and be wrong of what is there later; and it knows no such stack. */
#define CBATON_NEVER_LEFT __attribute__((no_sanitize("address")))

#endif
