/* Of this directory only. */
#ifndef BATON_SESSIONS_H
#define BATON_SESSIONS_H

/* Takes the session of that name that the kernel before has left; once in a boot. ENOENT: there is none.
 * EINVAL: it was taken. When its last descriptor is closed, all that it has is lost. */
int baton_session_open(const char *name, int limit_ms);

#endif
