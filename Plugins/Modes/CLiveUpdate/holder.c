#define _GNU_SOURCE
#include "liveupdate.h"
#include "sessions.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* The holder listens at an address without a file, as it is to be found by a session's name. Each message is one
 * letter and the number of a process: to the VMM LENT, with the session's descriptor, or TAKEN; from it FINISHED. A
 * connection that ends gives the session back. */
enum { LENT = 'L', TAKEN = 'T', FINISHED = 'F' };
struct message {
    char letter;
    pid_t process;
};
/* Milliseconds that an answer may take. */
enum { ANSWER_MS = 5000 };

static socklen_t address(const char *name, struct sockaddr_un *result) {
    *result = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(result->sun_path + 1, sizeof result->sun_path - 1, "baton-liveupdate/%s", name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

/* Who is at the other end, if that is this user or root. */
static pid_t trusted_peer(int socket) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size)) return -1;
    return peer.uid == geteuid() || peer.uid == 0 ? peer.pid : -1;
}

static int send_message(int socket, struct message content, int fd) {
    struct iovec data = {&content, sizeof content};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof content ? 0 : -1;
}

/* Returns whether a whole message came; `fd` is -1 without one. */
static int receive_message(int socket, struct message *content, int *fd, int flags) {
    struct iovec data = {content, sizeof *content};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *fd = -1;
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags) != sizeof *content) return 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS
        && head->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return 1;
}

/* ---- The holder's process. */

static int lend(int listener, int session, int is_lent, pid_t user) {
    int link = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (link < 0) return -1;
    if (trusted_peer(link) >= 0) {
        if (is_lent)
            send_message(link, (struct message){TAKEN, user}, -1);
        else if (!send_message(link, (struct message){LENT, getpid()}, session))
            return link;
    }
    close(link);
    return -1;
}

static void serve(int listener, int session) {
    int link = -1;
    pid_t user = 0;
    for (;;) {
        struct pollfd states[] = {{listener, POLLIN, 0}, {link, POLLIN, 0}};
        if (poll(states, link < 0 ? 1 : 2, -1) < 0) continue;
        if (link >= 0 && states[1].revents) {
            struct message content;
            int none;
            if (receive_message(link, &content, &none, MSG_DONTWAIT) && content.letter == FINISHED) return;
            close(link);
            link = -1;
            user = 0;
        }
        if (states[0].revents) {
            int next = lend(listener, session, link >= 0, user);
            if (next >= 0) {
                link = next;
                user = trusted_peer(link);
            }
        }
    }
}

/* Keeps nothing of the process that it comes from but the listener, and `report`, which goes when it is ready. */
static void become_holder(int listener, int report) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < SIGRTMIN; number++) signal(number, SIG_DFL);
    for (int number = SIGHUP; number <= SIGQUIT; number++) signal(number, SIG_IGN);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    prctl(PR_SET_NAME, "baton-holder");
    prctl(PR_SET_PDEATHSIG, 0);
    int null = open("/dev/null", O_RDWR);
    if (chdir("/") || null < 0) _exit(1);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    int low = listener < report ? listener : report, high = listener < report ? report : listener;
    syscall(SYS_close_range, 3, low - 1, 0);
    if (high > low + 1) syscall(SYS_close_range, low + 1, high - 1, 0);
    syscall(SYS_close_range, high + 1, ~0u, 0);
}

/* ---- The VMM's side. */

static int listen_at(const char *name) {
    struct sockaddr_un where;
    socklen_t length = address(name, &where);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    /* Above the standard descriptors, which the holder replaces. */
    int listener = fcntl(fd, F_DUPFD_CLOEXEC, 3), code = errno;
    close(fd);
    errno = code;
    if (listener < 0) return -1;
    if (bind(listener, (struct sockaddr *)&where, length) || listen(listener, 8)) {
        code = errno == EADDRINUSE ? EBUSY : errno;
        close(listener);
        errno = code;
        return -1;
    }
    return listener;
}

int baton_holder_start(const char *name, int limit_ms) {
    int listener = listen_at(name);
    if (listener < 0) return -1;
    int report[2] = {-1, -1}, ends[2], code = 0;
    if (pipe2(ends, O_CLOEXEC)) {
        code = errno;
        close(listener);
        errno = code;
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        report[i] = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
        close(ends[i]);
    }
    pid_t child = report[0] < 0 || report[1] < 0 ? -1 : fork();
    if (child == 0) {
        if (fork()) _exit(0);
        become_holder(listener, report[1]);
        int session = baton_session_open(name, limit_ms);
        code = session < 0 ? errno : 0;
        if (write(report[1], &code, sizeof code) != sizeof code) _exit(1);
        close(report[1]);
        if (session < 0) _exit(1);
        serve(listener, session);
        _exit(0);
    }
    if (child < 0) code = errno;
    close(listener);
    close(report[1]);
    if (child > 0) {
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
        ssize_t count;
        do count = read(report[0], &code, sizeof code);
        while (count < 0 && errno == EINTR);
        if (count != sizeof code) code = ECHILD;
    }
    close(report[0]);
    if (!code) return 0;
    /* The kernel's word for a session that some process has taken. */
    errno = code == EINVAL ? EBUSY : code;
    return -1;
}

int baton_holder_borrow(const char *name, int *link, pid_t *holder, pid_t *user) {
    struct sockaddr_un where;
    socklen_t length = address(name, &where);
    *user = 0;
    int socket_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (socket_fd < 0) return -1;
    int code = 0, session = -1;
    struct message content = {0};
    if (connect(socket_fd, (struct sockaddr *)&where, length)) {
        code = errno == ECONNREFUSED ? ENOENT : errno;
    } else if ((*holder = trusted_peer(socket_fd)) < 0) {
        code = EPERM;
    } else {
        struct pollfd state = {socket_fd, POLLIN, 0};
        int ready;
        do ready = poll(&state, 1, ANSWER_MS);
        while (ready < 0 && errno == EINTR);
        if (ready <= 0) code = ETIMEDOUT;
        else if (!receive_message(socket_fd, &content, &session, MSG_DONTWAIT)) code = ECONNRESET;
        else if (content.letter == TAKEN) code = EBUSY;
        else if (session < 0) code = EPROTO;
    }
    if (!code) {
        /* Of the process that took the session, not of that which had it listen. */
        *holder = content.process;
        *link = socket_fd;
        return session;
    }
    *user = content.process;
    if (session >= 0) close(session);
    close(socket_fd);
    errno = code;
    return -1;
}

void baton_holder_end(int link) {
    send_message(link, (struct message){FINISHED, getpid()}, -1);
    close(link);
}
