#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

bool send_message(int socket, const struct header *header, const void *data, const int *fds, unsigned fd_count) {
    union { struct cmsghdr head; char space[CMSG_SPACE(MOST_FDS * sizeof(int))]; } control = {0};
    struct iovec parts[] = {{(void *)header, sizeof *header}, {(void *)data, header->size - sizeof *header}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (fd_count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.head), fds, fd_count * sizeof(int));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)header->size;
}

static bool receive_all(int socket, void *data, size_t size) {
    return size == 0 || recv(socket, data, size, MSG_WAITALL) == (ssize_t)size;
}

bool receive_message(int socket, struct header *header, void *data, size_t room, int *fds, unsigned *fd_count) {
    union { struct cmsghdr head; char space[CMSG_SPACE(MOST_FDS * sizeof(int))]; } control = {0};
    struct iovec part = {header, sizeof *header};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *fd_count = 0;
    if (recvmsg(socket, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC) != sizeof *header) return false;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at; at = CMSG_NXTHDR(&message, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
        *fd_count = (unsigned)((at->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(at), *fd_count * sizeof(int));
    }
    return header->size >= sizeof *header && header->size - sizeof *header <= room
        && receive_all(socket, data, header->size - sizeof *header);
}
