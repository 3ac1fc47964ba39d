/// What `new-module --lang c` writes.
extension ModuleProject {
    var cSource: String {
        switch kind {
        case .preserver: cPreserver
        case .mode: cMode
        case .memoryBackend: cMemoryBackend
        }
    }

    private func cDescriptor(commands: Bool = false) -> String {
        let table = commands ? "\n        .commands = commands,\n        .command_count = BATON_COUNT(commands)," : ""
        return """
            BATON_MODULE_EXPORT const struct baton_module_descriptor *baton_module_query(void);
            BATON_MODULE_EXPORT const struct baton_module_descriptor *baton_module_query(void) {
                static const struct baton_module_descriptor descriptor = {
                    .magic = BATON_MODULE_MAGIC,
                    .size = sizeof descriptor,
                    .abi = BATON_MODULE_ABI,
                    .kind = "\(kind.rawValue)",
                    .name = "\(name)",
                    .version = "0.1",
                    .methods = methods,
                    .method_count = BATON_COUNT(methods),\(table)
                };
                return &descriptor;
            }

            """
    }

    private var cPreserver: String {
        """
        /* \(fullName): keeps an eventfd, and a count of updates, over updates of the VMM. */
        #include <baton-module.h>
        #include <errno.h>
        #include <sys/eventfd.h>

        static int fd = -1;      /* ours; made when the first VMM starts */
        static uint64_t updates; /* that it has seen */

        /* Once, when the module is loaded. The process before may have left us something. */
        static int32_t init(struct baton_host *host) {
            fd = baton_find_fd(host, "event", 0);
            if (fd >= 0) return 0;
            fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
            return fd >= 0 ? 0 : baton_fail_errno(host, "cannot make an eventfd", errno);
        }

        /* Why an update in this mode is not possible now: a descriptor lives in a process. */
        static int32_t check(struct baton_host *host, const char *mode, uint32_t promises) {
            (void)mode;
            return promises & (BATON_MODE_EXECUTES | BATON_MODE_CONNECTS) ? 0 : baton_fail(host, "the eventfd would be lost");
        }

        /* The guest is stopped. A failure here ends the update, and the guest goes on. */
        static int32_t save(struct baton_host *host) {
            int32_t status = baton_resave_fd(host, "event", 0, fd);
            return status != 0 ? status : baton_put_number(host, "updates", updates);
        }

        /* In the new VMM. The old one may still have to go on: change nothing outside of this process. */
        static int32_t load(struct baton_host *host) {
            /* A VMM without this module may have been before us. */
            if (!baton_has(host, "updates")) return 0;
            int32_t status = baton_get_number(host, "updates", UINT64_MAX - 1, &updates);
            if (status == 0) updates++;
            return status;
        }

        /* QMP: {"execute": "query-\(name)"} */
        static int32_t query(struct baton_host *host, int32_t *number, uint64_t *count) {
            (void)host;
            *number = fd;
            *count = updates;
            return 0;
        }

        static const struct baton_method methods[] = {
            BATON_METHOD("init", "i(h)", init),
            BATON_METHOD("check", "i(hsI)", check),
            BATON_METHOD("survey", "i(h)", save), /* what would be kept: saving changes nothing else */
            BATON_METHOD("save", "i(h)", save),
            BATON_METHOD("load", "i(h)", load),
        };

        static const struct baton_parameter query_results[] = {{"fd", 0, 0}, {"updates", 0, 0}};
        static const struct baton_command commands[] = {
            BATON_COMMAND("query-\(name)", "i(h>iL)", query, query_results),
        };

        \(cDescriptor(commands: true))
        """
    }

    private var cMode: String {
        """
        /* \(fullName): a CPR mode that executes the new VMM in this process, or hands the guest over to one
         * that waits at a unix socket. Guest RAM and descriptors stay. */
        #include <baton-module.h>
        #include <stdio.h>

        static uint32_t promises(struct baton_host *host) {
            (void)host;
            /* The last: no method waits for anything. For a mode that does, leave it out: then Baton
             * watches over it. */
            return BATON_MODE_SAME_PID | BATON_MODE_KEEPS_CONNECTIONS | BATON_MODE_EXECUTES | BATON_MODE_CONNECTS |
                   BATON_MODE_MEMFD_RAM | BATON_MODE_NEVER_HANGS;
        }

        static const char *summary(struct baton_host *host) {
            (void)host;
            return "execute the new VMM in this process, or reach one at a socket";
        }

        /* Why an update is not possible now. Asked while the guest runs. */
        static int32_t check(struct baton_host *host) {
            uint32_t count = baton_ram_count(host);
            for (uint32_t i = 0; i < count; i++) {
                struct baton_ram_block block;
                int32_t status = baton_ram_block(host, i, &block);
                if (status != 0) return status;
                if (block.fd >= 0 && block.shared) continue;
                char text[256];
                snprintf(text, sizeof text, "Memory region %.100s is volatile.", block.name);
                return baton_fail(host, text);
            }
            return 0;
        }

        /* Says what is to be executed: that happens when this has returned 0, beside the running guest. */
        static int32_t exec(struct baton_host *host) { return baton_handover(host); }

        /* In the old VMM: reaches the new one at the path that cpr-update gives. The guest waits. */
        static int32_t connect_to(struct baton_host *host, const char *channel, int64_t peer) {
            int32_t fd = baton_connect(host, channel, peer);
            return fd < 0 ? 1 : baton_handover_to(host, fd);
        }

        /* In the new VMM: waits for the old one. */
        static int32_t receive(struct baton_host *host, const char *channel) { return baton_receive(host, channel); }

        static const struct baton_method methods[] = {
            BATON_METHOD("promises", "I(h)", promises),
            BATON_METHOD("summary", "s(h)", summary),
            BATON_METHOD("check", "i(h)", check),
            BATON_METHOD("exec", "i(h)", exec),
            BATON_METHOD("connect", "i(hsl)", connect_to),
            BATON_METHOD("receive", "f(hs)", receive),
        };

        \(cDescriptor())
        """
    }

    private var cMemoryBackend: String {
        """
        /* \(fullName): guest memory in a memfd, which /proc shows under the option label=. */
        #define _GNU_SOURCE
        #include <baton-module.h>
        #include <errno.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <unistd.h>

        static const char *summary(struct baton_host *host) {
            (void)host;
            return "memory in a memfd with a label";
        }

        /* Called for every object, before make: refuses what is wrong with its options. */
        static int32_t check(struct baton_host *host, const char *id, uint64_t size) {
            (void)id;
            (void)size;
            const char *label = baton_option(host, "label");
            if (label && strlen(label) > 200) return baton_fail(host, "'label' has more than 200 bytes");
            return 0;
        }

        /* Not called when the VMM before has left memory of this id. */
        static int make(struct baton_host *host, const char *id, uint64_t size) {
            const char *label = baton_option(host, "label");
            int fd = memfd_create(label ? label : id, MFD_CLOEXEC);
            if (fd >= 0 && ftruncate(fd, (off_t)size) == 0) return fd;
            baton_fail_errno(host, "cannot make a memfd", errno);
            if (fd >= 0) close(fd);
            return -1;
        }

        static const struct baton_method methods[] = {
            BATON_METHOD("summary", "s(h)", summary),
            BATON_METHOD("check", "i(hsL)", check),
            BATON_METHOD("make", "f(hsL)", make),
        };

        \(cDescriptor())
        """
    }
}
