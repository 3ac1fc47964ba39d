// Streams of AF_VSOCK between the lab's Linux and its guest, at work in both: each has a server, and clients of the
// other's. When the other end is no more a connection ends, and its client makes the next one.

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include "vsock.h"

// How long the other end may be away, and how long an answer may take, in seconds.
enum { port = 5000, absence = 300, patience = 60 };

static int make_socket(void)
{
    int made = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (made < 0)
        FAIL("AF_VSOCK: %s", strerror(errno));
    return made;
}

// The other end has no address, or no server yet, or does not answer, while its VMM is replaced.
static int connect_to(int cid)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = cid};
    uint64_t begun = now(CLOCK_MONOTONIC);
    for (;;) {
        int made = make_socket();
        if (!connect(made, (struct sockaddr *)&address, sizeof address))
            return made;
        int error = errno;
        close(made);
        if (now(CLOCK_MONOTONIC) - begun > absence * 1000000000ull)
            FAIL("no connection to %d in %d s: %s", cid, absence, strerror(error));
        usleep(50000);
    }
}

// Returns whether the connection is there yet.
static int exchange(int connection, uint64_t number)
{
    uint64_t back;
    if (send(connection, &number, sizeof number, MSG_NOSIGNAL) != sizeof number)
        return 0;
    struct pollfd ready = {.fd = connection, .events = POLLIN};
    if (poll(&ready, 1, patience * 1000) != 1)
        FAIL("number %lu did not come back in %d s, and the connection did not end", number, patience);
    ssize_t count = recv(connection, &back, sizeof back, MSG_WAITALL);
    if (count == sizeof back && back != number)
        FAIL("in place of %lu came %lu", number, back);
    return count == sizeof back;
}

void vsock_busy_work(int cid)
{
    for (uint64_t number = 0;;) {
        int connection = connect_to(cid);
        while (exchange(connection, number++)) {
            add(&shared->vsock_echoes);
            usleep(20000);
        }
        add(&shared->vsock_busy_ends);
        close(connection);
    }
}

// Says nothing, and learns from the kernel alone that the other end is no more.
void vsock_idle_work(int cid)
{
    for (;;) {
        int connection = connect_to(cid);
        char byte;
        if (exchange(connection, cid)) {
            if (recv(connection, &byte, 1, 0) > 0)
                FAIL("an idle connection got something");
            add(&shared->vsock_idle_ends);
        }
        close(connection);
    }
}

static void serve(int connection)
{
    char bytes[256];
    ssize_t count;
    while ((count = recv(connection, bytes, sizeof bytes, 0)) > 0)
        if (send(connection, bytes, count, MSG_NOSIGNAL) != count)
            break;
    add(&shared->vsock_served);
    _exit(0);
}

void vsock_server_work(int unused)
{
    (void)unused;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
    int server = make_socket();
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 16))
        FAIL("listening at port %d: %s", port, strerror(errno));
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int connection = accept(server, NULL, NULL);
        if (connection < 0)
            continue;
        add(&shared->vsock_accepted);
        pid_t child = fork();
        if (child < 0)
            FAIL("fork: %s", strerror(errno));
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            serve(connection);
        }
        close(connection);
    }
}

int describe_vsock(char *text, int size)
{
    return snprintf(text, size, "vsock-echoes=%lu vsock-busy-ends=%lu vsock-idle-ends=%lu vsock-open=%lu",
        shared->vsock_echoes, shared->vsock_busy_ends, shared->vsock_idle_ends,
        shared->vsock_accepted - shared->vsock_served);
}
