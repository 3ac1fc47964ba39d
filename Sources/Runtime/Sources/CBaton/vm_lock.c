#define _GNU_SOURCE
#include "cbaton.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* A mutex that lets its waiters in: whoever releases it for others, and takes it again at once, would else win
 * against a thread that has still to wake up. A normal mutex, as it goes over to a child that has another thread id
 * (beside.c) and has to be released there. */
struct cbaton_vm_lock {
    pthread_mutex_t mutex;
    atomic_uint waiting;
    atomic_uint taken; /* counts acquisitions */
};

struct cbaton_vm_lock *cbaton_vm_lock_make(void) {
    struct cbaton_vm_lock *lock = calloc(1, sizeof *lock);
    if (lock) pthread_mutex_init(&lock->mutex, NULL);
    return lock;
}

void cbaton_vm_lock_free(struct cbaton_vm_lock *lock) { free(lock); }

void cbaton_vm_lock_acquire(struct cbaton_vm_lock *lock) {
    if (pthread_mutex_trylock(&lock->mutex) != 0) {
        atomic_fetch_add_explicit(&lock->waiting, 1, memory_order_relaxed);
        pthread_mutex_lock(&lock->mutex);
        atomic_fetch_sub_explicit(&lock->waiting, 1, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&lock->taken, 1, memory_order_relaxed);
}

void cbaton_vm_lock_release(struct cbaton_vm_lock *lock) { pthread_mutex_unlock(&lock->mutex); }

void cbaton_vm_lock_yield(struct cbaton_vm_lock *lock) {
    if (atomic_load_explicit(&lock->waiting, memory_order_relaxed) == 0) return;
    unsigned taken = atomic_load_explicit(&lock->taken, memory_order_relaxed);
    int64_t end = cbaton_monotonic_ns() + 100000;
    while (atomic_load_explicit(&lock->taken, memory_order_relaxed) == taken &&
           atomic_load_explicit(&lock->waiting, memory_order_relaxed) != 0 && cbaton_monotonic_ns() < end)
        sched_yield();
}
