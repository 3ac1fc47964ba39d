import TestSupport

/// A module whose commands do what a guest would that has broken out and runs in the VMM's place.
enum EscapeModule {
    /// - Parameter needs: what the module says that it needs of a sandbox, as C.
    static func build(in directory: TemporaryDirectory, needs: String = "") throws -> String {
        try CModule.build(
            kind: "preserver", name: "escape", needs + source, tables: ["commands"], in: directory)
    }

    private static let source = """
        #include <errno.h>
        #include <fcntl.h>
        #include <netinet/in.h>
        #include <sched.h>
        #include <signal.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/mount.h>
        #include <sys/ptrace.h>
        #include <sys/socket.h>
        #include <sys/stat.h>
        #include <sys/syscall.h>
        #include <sys/uio.h>
        #include <sys/un.h>
        #include <sys/wait.h>
        #include <unistd.h>

        /* CLONE_NEWUSER, which is not for ISO C. */
        #define NEW_USERS 0x10000000

        /* Whoever has started the VMM: a process outside of it, of the same user. */
        static pid_t outsider(void) { return getppid(); }

        static long done(long result) { return result < 0 ? errno : 0; }

        static long opens(const char *path, int flags) {
            int fd = open(path, flags | O_CLOEXEC, 0600);
            if (fd < 0) return errno;
            close(fd);
            return 0;
        }

        static long connects(const struct sockaddr *name, socklen_t length) {
            int fd = socket(name->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (fd < 0) return errno;
            long code = done(connect(fd, name, length));
            close(fd);
            return code;
        }

        static long connects_unix(const char *path) {
            struct sockaddr_un name = {.sun_family = AF_UNIX};
            strncpy(name.sun_path, path, sizeof name.sun_path - 1);
            return connects((struct sockaddr *)&name, sizeof name);
        }

        static long connects_tcp(const char *port) {
            struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)),
                                       .sin_addr = {htonl(INADDR_LOOPBACK)}};
            return connects((struct sockaddr *)&name, sizeof name);
        }

        static long binds_tcp(void) {
            struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            long code = done(bind(fd, (struct sockaddr *)&name, sizeof name));
            close(fd);
            return code;
        }

        static long reads_memory(void) {
            char byte;
            struct iovec here = {&byte, 1}, there = {(void *)done, 1};
            return done(syscall(SYS_process_vm_readv, outsider(), &here, 1, &there, 1, 0));
        }

        /* A program is executed, and its end is the answer. */
        static long runs(char *const argv[]) {
            pid_t child = fork();
            if (child < 0) return errno;
            if (child == 0) {
                int null = open("/dev/null", O_RDWR);
                dup2(null, 1);
                dup2(null, 2);
                execv(argv[0], argv);
                _exit(127);
            }
            int status = 0;
            while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
            }
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
        }

        /* By whatever datagram socket the VMM has, or a new pair. */
        static long sends_datagram(const char *path) {
            struct sockaddr_un name = {.sun_family = AF_UNIX};
            strncpy(name.sun_path, path, sizeof name.sun_path - 1);
            int pair[2], type = 0;
            long code = done(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair));
            for (int fd = 3; fd < 256; fd++) {
                socklen_t length = sizeof type;
                if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_DGRAM) continue;
                if (sendto(fd, "x", 1, MSG_NOSIGNAL, (struct sockaddr *)&name, sizeof name) == 1) return 0;
                code = errno;
            }
            return code;
        }

        static long makes_namespace(void) {
            long child = syscall(SYS_clone, NEW_USERS | SIGCHLD, 0, 0, 0, 0);
            if (child == 0) _exit(0);
            if (child < 0) return errno;
            waitpid((pid_t)child, NULL, 0);
            return 0;
        }

        /* Speaks with the warden as the VMM does: REQUEST, and a path. */
        static long asks(uint32_t request, const char *path) {
            struct { uint32_t words[3]; char path[256]; } message = {{request, 0, 0}, {0}};
            strncpy(message.path, path, sizeof message.path - 1);
            for (int fd = 3; fd < 256; fd++) {
                int type = 0, ends[2];
                socklen_t length = sizeof type;
                struct sockaddr_un name;
                socklen_t name_length = sizeof name;
                if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_SEQPACKET) continue;
                if (getpeername(fd, (struct sockaddr *)&name, &name_length) != 0) continue;
                if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return errno;
                struct iovec vector = {&message, sizeof message.words + strlen(message.path)};
                union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
                struct msghdr header = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
                                        .msg_controllen = sizeof control};
                struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
                *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                           .cmsg_len = CMSG_LEN(sizeof(int))};
                memcpy(CMSG_DATA(rights), &ends[1], sizeof(int));
                ssize_t sent = sendmsg(fd, &header, MSG_NOSIGNAL);
                close(ends[1]);
                int32_t code = 1001;
                if (sent > 0 && recv(ends[0], &code, sizeof code, 0) != sizeof code) code = 1002;
                close(ends[0]);
                return code;
            }
            return 1003;
        }

        static int32_t try(struct baton_host *host, const char *what, const char *with, int64_t *code) {
            (void)host;
            #define IS(word) (strcmp(what, word) == 0)
            *code = 1004;
            if (IS("read")) *code = opens(with, O_RDONLY);
            if (IS("write")) *code = opens(with, O_WRONLY);
            if (IS("create")) *code = opens(with, O_WRONLY | O_CREAT);
            if (IS("list")) *code = opens(with, O_RDONLY | O_DIRECTORY);
            if (IS("remove")) *code = done(unlink(with));
            if (IS("mode")) *code = done(chmod(with, 0666));
            if (IS("link")) *code = done(link("/etc/passwd", with));
            if (IS("connect-unix")) *code = connects_unix(with);
            if (IS("connect-tcp")) *code = connects_tcp(with);
            if (IS("bind-tcp")) *code = binds_tcp();
            if (IS("datagrams")) *code = done(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
            if (IS("send-datagram")) *code = sends_datagram(with);
            if (IS("netlink")) *code = done(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
            if (IS("signal")) *code = done(kill(outsider(), 0));
            if (IS("ptrace")) *code = done(ptrace(PTRACE_ATTACH, outsider(), NULL, NULL));
            if (IS("memory")) *code = reads_memory();
            if (IS("environment")) *code = opens(with, O_RDONLY);
            if (IS("mount")) *code = done(mount("none", "/mnt", "tmpfs", 0, NULL));
            if (IS("unshare")) *code = done(syscall(SYS_unshare, NEW_USERS));
            if (IS("namespace")) *code = makes_namespace();
            if (IS("chroot")) *code = done(chroot("/"));
            if (IS("setuid")) *code = done(syscall(SYS_setuid, 0));
            if (IS("io_uring")) *code = done(syscall(SYS_io_uring_setup, 4, NULL));
            if (IS("bpf")) *code = done(syscall(SYS_bpf, 0, NULL, 0));
            if (IS("perf")) *code = done(syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
            if (IS("userfaultfd")) *code = done(syscall(SYS_userfaultfd, 0));
            if (IS("keyctl")) *code = done(syscall(SYS_keyctl, 0, 0, 0, 0, 0));
            if (IS("module")) *code = done(syscall(SYS_finit_module, -1, "", 0));
            if (IS("reboot")) *code = done(syscall(SYS_reboot, 0, 0, 0, NULL));
            if (IS("run")) *code = runs((char *const[]){"/bin/cat", (char *)with, NULL});
            if (IS("warden-open")) *code = asks(16, with);
            if (IS("warden-remove")) *code = asks(19, with);
            if (IS("warden-allow")) *code = asks(2, with);
            if (IS("personality")) *code = done(syscall(SYS_personality, 0xffffffff));
            return 0;
        }

        static const struct baton_parameter names[] = {{"what"}, {"with"}, {"code"}};
        static const struct baton_command commands[] = {BATON_COMMAND("escape-try", "i(hss>l)", try, names)};

        """ + preserver

    /// What a preserver must have, to keep nothing.
    static let preserver = """
        static int32_t keep(struct baton_host *host) { (void)host; return 0; }
        static const struct baton_method methods[] = {
            BATON_METHOD("save", "i(h)", keep), BATON_METHOD("load", "i(h)", keep),
        };
        """
}
