/* preserver-fd: keeps descriptors of other programs open over updates of the
 * VMM, as systemd's FD store does for services. A supervisor hands one over
 * (getfd, then fd-store-add); whatever is behind it stays open as long as the
 * VM lives, and it can be found again under its name.
 *
 * This is also the example of a preserver in C: it needs nothing of Baton but
 * baton-module.h. */
#include "preserver_fd.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SLOTS 256
#define NAME_MAX_BYTES 64

struct slot {
    int fd; /* ours; -1: the slot is free */
    uint64_t updates;
    char name[NAME_MAX_BYTES + 1];
};
static struct slot slots[SLOTS];

static struct slot *find(const char *name) {
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++)
        if (slot->fd >= 0 && strcmp(slot->name, name) == 0) return slot;
    return NULL;
}

static int32_t not_found(struct baton_host *host, const char *name) {
    char text[NAME_MAX_BYTES + 64];
    snprintf(text, sizeof text, "there is no descriptor '%.*s' in the store", NAME_MAX_BYTES, name);
    return baton_fail(host, text);
}

/* ---- Commands. */

static int32_t add(struct baton_host *host, const char *name, int fd) {
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX_BYTES) return baton_fail(host, "'name' must have 1 to 64 bytes");
    if (find(name)) return baton_fail(host, "the store has a descriptor of that name");
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++) {
        if (slot->fd >= 0) continue;
        memcpy(slot->name, name, length + 1);
        slot->updates = 0;
        slot->fd = fd;
        return 0;
    }
    return baton_fail(host, "the store is full (256 descriptors)");
}

static int32_t remove_fd(struct baton_host *host, const char *name) {
    struct slot *slot = find(name);
    if (!slot) return not_found(host, name);
    baton_delete_fd(host, "slot", (int32_t)(slot - slots));
    close(slot->fd);
    slot->fd = -1;
    return 0;
}

/* The number serves pidfd_getfd(2) and /proc/PID/fd. */
static int32_t query(struct baton_host *host, const char *name, int32_t *number, uint64_t *updates) {
    struct slot *slot = find(name);
    if (!slot) return not_found(host, name);
    *number = slot->fd;
    *updates = slot->updates;
    return 0;
}

static int32_t count(struct baton_host *host, uint32_t *used, uint32_t *capacity) {
    (void)host;
    *used = 0;
    *capacity = SLOTS;
    for (struct slot *slot = slots; slot < slots + SLOTS; slot++) *used += slot->fd >= 0;
    return 0;
}

/* ---- The life of an update. */

static void key(char *text, size_t size, const char *field, size_t index) {
    snprintf(text, size, "%s.%zu", field, index);
}

static int32_t init(struct baton_host *host) {
    (void)host;
    for (size_t i = 0; i < SLOTS; i++) slots[i].fd = -1;
    return 0;
}

static uint32_t promises(struct baton_host *host) {
    (void)host;
    return BATON_PRESERVER_NEVER_HANGS;
}

/* An open descriptor goes from one living process to another. */
static int32_t check(struct baton_host *host, const char *mode, uint32_t promises) {
    (void)mode;
    uint32_t used, capacity;
    count(host, &used, &capacity);
    if (used == 0 || promises & (BATON_MODE_EXECUTES | BATON_MODE_CONNECTS)) return 0;
    return baton_fail(host, "the descriptors in the store would be lost; take them out with fd-store-remove");
}

static int32_t save(struct baton_host *host) {
    char name[32], updates[32];
    for (size_t i = 0; i < SLOTS; i++) {
        if (slots[i].fd < 0) continue;
        key(name, sizeof name, "name", i);
        key(updates, sizeof updates, "updates", i);
        if (baton_resave_fd(host, "slot", (int32_t)i, slots[i].fd) != 0 ||
            baton_put_string(host, name, slots[i].name) != 0 ||
            baton_put_number(host, updates, slots[i].updates) != 0)
            return 1;
    }
    return 0;
}

static int32_t load(struct baton_host *host) {
    char field[32];
    for (size_t i = 0; i < SLOTS; i++) {
        int fd = baton_find_fd(host, "slot", (int32_t)i);
        if (fd < 0) continue;
        const char *name;
        uint64_t updates;
        key(field, sizeof field, "name", i);
        if (baton_get_string(host, field, &name) != 0) return 1;
        if (strlen(name) > NAME_MAX_BYTES) return baton_fail(host, "a descriptor's name is too long");
        key(field, sizeof field, "updates", i);
        if (baton_get_number(host, field, UINT64_MAX - 1, &updates) != 0) return 1;
        strcpy(slots[i].name, name);
        slots[i].updates = updates + 1;
        slots[i].fd = fd;
    }
    return 0;
}

/* ---- The descriptor. */

static const struct baton_method methods[] = {
    BATON_METHOD("init", "i(h)", init),
    BATON_METHOD("promises", "I(h)", promises),
    BATON_METHOD("check", "i(hsI)", check),
    BATON_METHOD("survey", "i(h)", save), /* saving changes nothing else */
    BATON_METHOD("save", "i(h)", save),
    BATON_METHOD("load", "i(h)", load),
};

static const struct baton_parameter add_parameters[] = {{"name"}, {"fd"}};
static const struct baton_parameter remove_parameters[] = {{"name"}};
static const struct baton_parameter query_parameters[] = {{"name"}, {"number"}, {"updates"}};
static const struct baton_parameter count_parameters[] = {{"used"}, {"capacity"}};

static const struct baton_command commands[] = {
    BATON_COMMAND("fd-store-add", "i(hsf)", add, add_parameters),
    BATON_COMMAND("fd-store-remove", "i(hs)", remove_fd, remove_parameters),
    BATON_COMMAND("query-fd-store", "i(h>II)", count, count_parameters),
    BATON_COMMAND("query-fd-store-entry", "i(hs>iL)", query, query_parameters),
};

BATON_MODULE_EXPORT const struct baton_module_descriptor *baton_module_query(void) {
    static const struct baton_module_descriptor descriptor = {
        .magic = BATON_MODULE_MAGIC,
        .size = sizeof descriptor,
        .abi = BATON_MODULE_ABI,
        .kind = "preserver",
        .name = "fd",
        .version = "1.0",
        .methods = methods,
        .method_count = BATON_COUNT(methods),
        .commands = commands,
        .command_count = BATON_COUNT(commands),
    };
    return &descriptor;
}
