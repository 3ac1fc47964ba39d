// A preserver in C++: keeps a total, and a descriptor, over updates. The same
// module is in tally.rs and tally.zig; ForeignLanguageTests builds and loads them.
#include <baton-module.h>
#include <cerrno>
#include <cstdint>
#include <sys/mman.h>

namespace {

struct Tally {
    int fd = -1;
    uint64_t total = 0;
} tally;

int32_t add(baton_host *host, uint32_t count, uint64_t *total) {
    if (tally.fd < 0) tally.fd = memfd_create("tally", MFD_CLOEXEC);
    if (tally.fd < 0) return baton_fail_errno(host, "cannot make memory", errno);
    if (count == 13) return baton_fail(host, "13 is not counted");
    *total = tally.total += count;
    return 0;
}

int32_t query(baton_host *, uint64_t *total, int32_t *number) {
    *total = tally.total;
    *number = tally.fd;
    return 0;
}

int32_t save(baton_host *host) {
    if (tally.fd < 0) return 0;
    if (auto error = baton_resave_fd(host, "memory", 0, tally.fd)) return error;
    return baton_put_number(host, "total", tally.total);
}

int32_t load(baton_host *host) {
    tally.fd = baton_find_fd(host, "memory", 0);
    return tally.fd < 0 ? 0 : baton_get_number(host, "total", UINT64_MAX, &tally.total);
}

const baton_method methods[] = {
    BATON_METHOD("survey", "i(h)", save),
    BATON_METHOD("save", "i(h)", save),
    BATON_METHOD("load", "i(h)", load),
};
const baton_parameter add_names[] = {{"count", 1, 1000}, {"total", 0, 0}};
const baton_parameter query_names[] = {{"total", 0, 0}, {"number", 0, 0}};
const baton_command commands[] = {
    BATON_COMMAND("tally-add", "i(hI>L)", add, add_names),
    BATON_COMMAND("tally-query", "i(h>Li)", query, query_names),
};

}  // namespace

extern "C" BATON_MODULE_EXPORT const baton_module_descriptor *baton_module_query() {
    static const baton_module_descriptor descriptor = {
        BATON_MODULE_MAGIC, sizeof(baton_module_descriptor), BATON_MODULE_ABI,
        "preserver", "tally", "1.0", nullptr, 0, nullptr,
        methods, BATON_COUNT(methods), commands, BATON_COUNT(commands), nullptr, 0,
    };
    return &descriptor;
}
