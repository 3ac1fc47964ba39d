/* Sessions of Linux' Live Update Orchestrator, /dev/liveupdate, and who holds them while no VMM does.
 *
 * A session has a name and memfds by number. It goes through a kexec if somebody has it open then; the new kernel
 * gives it out once, and it ends when the last descriptor of it is closed. So in the new kernel a process of its own
 * takes it, the holder, which lends it to one VMM after the other until one has the guest.
 *
 * Functions return -1 and set errno when they fail, unless they say otherwise. */
#ifndef BATON_LIVEUPDATE_H
#define BATON_LIVEUPDATE_H

#include <stdint.h>
#include <sys/types.h>

/* Bytes of a session's name, with its zero at the end. */
#define BATON_SESSION_NAME_SIZE 64

/* Whether this process may open the device: 0, or -1. Does not open it. */
int baton_liveupdate_access(void);
/* Makes a session, which goes with the last descriptor of it, by the open device. EEXIST: there is one of that name. */
int baton_session_create(int device_fd, const char *name);
/* Has a memfd, of which a reference is kept, go through the kexec under a number. ENOENT: it is no memory that the
 * kernel can keep. Its pages are allocated and pinned, and its size is fixed, until the session ends. */
int baton_session_preserve(int session, int fd, uint64_t token);
/* In the new kernel: a memfd of a session, as often as it is asked for. ENOENT: there is none of that number. */
int baton_session_retrieve(int session, uint64_t token);
/* In the new kernel: ends what the session keeps; memfds that were retrieved live on by their descriptors. */
int baton_session_finish(int session);
/* Whether a descriptor is a session of that name. */
int baton_session_is(int fd, const char *name);

/* Starts the holder of a session that the kernel before has left: a child's child of this process, in a session (of
 * processes) of its own. ENOENT: there is no such session. EBUSY: some process has taken it already, or has the
 * holder's address. */
int baton_holder_start(const char *name, int limit_ms);
/* Borrows a session from its holder, which must be of this user or root, until `link` is closed.
 * ENOENT: it has none. EBUSY: the process `user` has it now.
 * Returns the session's descriptor. */
int baton_holder_borrow(const char *name, int *link, pid_t *holder, pid_t *user);
/* Tells the holder that the session is finished, and that it is to end. Closes `link`. */
void baton_holder_end(int link);

#endif
