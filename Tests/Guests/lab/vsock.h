// The work on AF_VSOCK sockets, of the guest and of its host. The argument is the address of the other end.

#pragma once
#include "lab.h"

void vsock_busy_work(int cid);
void vsock_idle_work(int cid);
void vsock_server_work(int unused);

// What has been done, as NAME=VALUE..., the number of connections that the server has now among it.
int describe_vsock(char *text, int size);
