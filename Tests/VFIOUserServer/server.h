#ifndef VFIO_USER_SERVER_H
#define VFIO_USER_SERVER_H

#include "device.h"

/* What the options make different. */
struct settings {
    bool twin, asks;
    const char *capabilities, *bad, *region, *request;
    int bad_command;
    unsigned message_fds;
};
extern struct settings settings;

/* Writes a line to the log. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* BAR 2 can be mapped from FILE. */
void server_start(int file);
void server_connected(int connection);
/* Serves a message. Returns whether the connection goes on. */
bool server_message(void);
void server_disconnected(void);
/* Tells the client of an error of the device. */
void server_error(void);
void server_tick(void);

/* The wire: messages with descriptors, whole or not at all. */
struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};
enum { REPLY = 1, NO_REPLY = 0x10, ERROR = 0x20, MOST_FDS = 32 };
bool send_message(int socket, const struct header *header, const void *data, const int *fds, unsigned fd_count);
/* Receives a message into DATA, and its descriptors, which are the caller's. */
bool receive_message(int socket, struct header *header, void *data, size_t room, int *fds, unsigned *fd_count);

#endif
