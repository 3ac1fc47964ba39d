#define _GNU_SOURCE
#include "call-notices.h"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int install(const struct sock_filter *code, size_t count) {
    struct sock_fprog program = {(unsigned short)count, (struct sock_filter *)code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

pid_t call_notices_start(char **command, const struct sock_filter *code, size_t count, int *listener) {
    int pair[2];
    *listener = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) return -1;
    char byte = 0;
    struct iovec data = {&byte, 1};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(127);
        int fd = install(code, count);
        if (fd < 0) {
            perror("seccomp");
            _exit(127);
        }
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
        if (sendmsg(pair[1], &message, 0) != 1) _exit(127);
        close(fd);
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    close(pair[1]);
    if (child > 0 && recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message)) {
        memcpy(listener, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof *listener);
    }
    close(pair[0]);
    return child;
}

pid_t call_notices_start_requests(
    char **command, const unsigned *calls, size_t count, unsigned char type, int *listener) {
#if defined(__x86_64__)
    const unsigned architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
    const unsigned architecture = AUDIT_ARCH_AARCH64;
#endif
    struct sock_filter code[count + 10], *at = code;
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    /* The notification is behind the check of ioctl, 5 instructions long. */
    for (size_t i = 0; i < count; i++) {
        unsigned char distance = (unsigned char)(count - 1 - i + 5);
        *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], distance, 0);
    }
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3);
    *at++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]));
    *at++ = (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff << _IOC_TYPESHIFT);
    *at++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)type << _IOC_TYPESHIFT, 1, 0);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *at++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    return call_notices_start(command, code, (size_t)(at - code), listener);
}

int call_notices_ended(const struct pollfd *state) {
    return state->revents & (POLLHUP | POLLERR) && !(state->revents & POLLIN);
}

int call_notices_status(pid_t child) {
    int status = 0;
    if (waitpid(child, &status, 0) != child) return 2;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void call_notices_answer(int listener, unsigned long long call, long result) {
    struct seccomp_notif_resp response = {.id = call};
    if (result < 0) response.error = (int)result;
    else response.val = result;
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

void call_notices_pass(int listener, unsigned long long call) {
    struct seccomp_notif_resp response = {.id = call, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}
