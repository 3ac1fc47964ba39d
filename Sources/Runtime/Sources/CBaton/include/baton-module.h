/* The binary interface between Baton and a module's file. For C, C++, and
 * whatever else can make a shared object: Rust, Zig.
 *
 * A module exports one function, baton_module_query, which returns a
 * descriptor that stays valid for the life of the process. Nothing else of the
 * module is called before the descriptor has been checked. A module is never
 * unloaded, and one thing in it is called at a time: steps of an update in a
 * thread that the main one waits for, all else on the main thread.
 *
 * There are two sorts of module:
 *  - native ones, in Swift, have a register_module function and the
 *    fingerprint of the one runtime that they fit;
 *  - foreign ones have neither, but tables of methods and commands, and fit
 *    every runtime of the same BATON_MODULE_ABI.
 *
 * Sources/Documentation/modules.md and preservers.md are the manual. */
#ifndef BATON_MODULE_H
#define BATON_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "BATONMOD", little endian. */
#define BATON_MODULE_MAGIC UINT64_C(0x444f4d4e4f544142)
/* Raised when the meaning of anything below changes. What is only added, at
 * the end of a structure or as a function, does not raise it. */
#define BATON_MODULE_ABI 2u
#define BATON_MODULE_QUERY_SYMBOL "baton_module_query"
/* Put in front of baton_module_query, for -fvisibility=hidden. */
#define BATON_MODULE_EXPORT __attribute__((visibility("default")))

/* The runtime, as one module sees it: the first argument ("h") of its methods
 * and commands. Valid for the life of the process. */
struct baton_host;

typedef void (*baton_function)(void);

/* A method or command's function has a signature that says how to call it:
 * a letter for the result, then in brackets a letter an argument.
 *
 *   v  nothing (result only)          s  const char *, UTF-8, ends with a zero
 *   b  bool                           f  int, a file descriptor
 *   i  int32_t      I  uint32_t       B  bytes: const void *, size_t
 *   l  int64_t      L  uint64_t       h  struct baton_host *
 *   d  double
 *
 * In commands only: "?" before a letter makes the argument optional, and a
 * bool that says whether it was given comes before it; what follows ">" are
 * results, which the function stores through pointers (for s a const char **,
 * for B a const void ** and a size_t *). Example: "i(hs?I>L)" is
 *   int32_t f(struct baton_host *, const char *, bool, uint32_t, uint64_t *).
 *
 * Strings and bytes that the runtime gives are the runtime's, and valid for
 * the call. Strings and bytes that the module gives are the module's, and must
 * stay valid until it is called the next time. */

/* A method that returns "i" succeeds with 0. Anything else is a failure whose
 * text baton_fail gives. */
struct baton_method {
    const char *name;
    const char *signature;
    baton_function function;
};

/* The name of an argument or result of a command, and for integers the least
 * and greatest value allowed; both 0 for all that the type can hold. */
struct baton_parameter {
    const char *name;
    int64_t minimum;
    int64_t maximum;
};

/* A QMP command. The signature starts with "i(h". An "f" argument is, in QMP,
 * the name of a descriptor given with getfd; it belongs to the module when the
 * function returns 0, and else stays the monitor's. */
struct baton_command {
    const char *name; /* a-z, 0-9 and "-" */
    const char *signature;
    baton_function function;
    /* One for each argument and result behind "h", in order; NULL if none. */
    const struct baton_parameter *parameters;
};

/* A QMP event that the module may emit. The signature has the letters of its
 * data, without brackets; "?" makes a member optional. */
struct baton_event {
    const char *name; /* A-Z, 0-9 and "_" */
    const char *signature;
    const struct baton_parameter *parameters;
};

struct baton_module_descriptor {
    uint64_t magic;          /* BATON_MODULE_MAGIC */
    uint32_t size;           /* sizeof of this structure as the module knows it */
    uint32_t abi;            /* BATON_MODULE_ABI */
    const char *kind;        /* "mode", "memory-backend", "preserver"; native only: "accel", "block", "device",
                                "foreign", "machine" */
    const char *name;        /* as on the command line; the file is libKIND-NAME.so */
    const char *version;     /* for people */
    const char *fingerprint; /* native: of the runtime that the module was built against; foreign: NULL */
    uint64_t capabilities;   /* BATON_NEEDS_* bits that the runtime must know; 0 for none */
    /* Native: registers what the module provides. Returns 0, or another value
     * after it has told the registrar why not. The argument is valid for the
     * call. Foreign: NULL. */
    int32_t (*register_module)(void *registrar);
    /* From here on: foreign modules. */
    const struct baton_method *methods;
    size_t method_count;
    const struct baton_command *commands;
    size_t command_count;
    const struct baton_event *events;
    size_t event_count;
};

typedef const struct baton_module_descriptor *(*baton_module_query_fn)(void);

/* Without it the runtime ignores methods that it does not know: they may be
 * for a later one. With it a module says that it cannot do without them. */
#define BATON_NEEDS_ALL_METHODS 1ull

/* For tables: BATON_METHOD("save", "i(h)", save). */
#define BATON_METHOD(name, signature, function) {(name), (signature), (baton_function)(function)}
#define BATON_COMMAND(name, signature, function, parameters) \
    {(name), (signature), (baton_function)(function), (parameters)}
#define BATON_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Methods by kind. All are optional but those marked *.
 *
 * every kind:     init         i(h)    once, when the module is loaded
 *                                      In a new VMM the guest runs in the old one meanwhile.
 * preserver:      promises     I(h)    BATON_PRESERVER_* bits; asked once, at load
 *                 check        i(hsI)  could a mode of this name, with these BATON_MODE_* promises, keep
 *                                      everything now? a failure says why not
 *                 survey       i(h)    save what would be kept, and change nothing else; the guest may run.
 *                                      "init" of a new VMM finds that
 *                 save       * i(h)    the guest is stopped; save fds and state
 *                 exec         i(h)    the last step in the old VMM; "load" of the new one finds what
 *                                      was saved and put since "save" began
 *                 save-failed  v(h)    the guest goes on here; also without a "save" before it
 *                 load       * i(h)    in the new VMM: take fds and state back, change nothing else yet
 *                 load-failed  v(h)
 *                 commit       v(h)    the guest is this process'
 *                 ready        v(hiI)  an fd of baton_watch, and the BATON_FD_* events that it has
 * mode:           promises   * I(h)    BATON_MODE_* bits; asked once, at load
 *                 summary      s(h)    a line for -cpr-enable help
 *                 check        i(h)    could the VM be saved now?
 *                 volatile     b(hI)   must the checkpoint hold the contents of RAM block number N?
 *                 save         i(h)    put the mode's own state into the checkpoint
 *                 load         i(h)    take it back
 *                 exec         i(h)    with BATON_MODE_EXECUTES: say what is to be executed: baton_handover
 *                 connect      i(hsl)  with BATON_MODE_CONNECTS: reach the new VMM at a channel, of the user that
 *                                      is named (-1: none is), and say so: baton_handover_to. The guest waits
 *                 receive      f(hs)   with BATON_MODE_CONNECTS, in the new VMM before anything of the machine is
 *                                      there: wait for the old one at a channel; a connected SOCK_SEQPACKET unix
 *                                      socket, which the runtime owns from then on, or -1: baton_receive
 *                 the others are for BATON_MODE_SURVIVES_HOST_UPDATE:
 *                 prepare      i(h)    the guest is about to be stopped for a save: do what takes long
 *                 keep         i(hii)  the guest is stopped: keep the fds of its state and its checkpoint, which are the
 *                                      runtime's, and those of all RAM blocks that are shared and not persistent
 *                 let-go       v(h)    nothing came of it, or the guest goes on here: nobody may find it any more
 *                 find         i(h)    in a new VMM before anything of the machine is there: look for the guest of this
 *                                      VM, and say so: baton_found. It must stay there until "finish"
 *                 finish       i(h)    the last step before the guest is this process': nobody may find it any more
 * memory-backend: summary      s(h)    a line for -object help
 *                 check        i(hsL)  id and size in bytes of an object: read its options
 *                 make       * f(hsL)  id and size in bytes: an fd with that much memory, which the
 *                                      runtime owns from then on, or -1 */

#define BATON_MODE_SAME_PID 1u             /* a new VMM that is executed has the PID */
#define BATON_MODE_SURVIVES_HOST_REBOOT 2u /* the checkpoint does not need the process before */
#define BATON_MODE_KEEPS_CONNECTIONS 4u    /* connections of clients and devices stay open */
#define BATON_MODE_EXECUTES 8u             /* there is an "exec", and so cpr-exec, and cpr-update with argv */
#define BATON_MODE_CONNECTS 16u            /* there are "connect" and "receive": cpr-update with a channel */
#define BATON_MODE_SURVIVES_HOST_UPDATE 32u /* there are "keep" and "find": the guest stays while no VMM runs */
#define BATON_MODE_MEMFD_RAM 256u          /* RAM without a backend of its own gets a memfd */
/* Each method is done soon, whatever happens: all that it may wait for has a
 * time limit of its own. Then the runtime spends no time on watching it: each of
 * its steps is called on the main thread, and a crash there is the VMM's. */
#define BATON_MODE_NEVER_HANGS 512u
#define BATON_PRESERVER_NEVER_HANGS 1u

/* ---- What the runtime offers. Functions that return int32_t return 0, or
 * another value after they have set the text of baton_fail, so that a method
 * can return that value as it is. Only to be called from the thread on which
 * the module is called, and only while it is called. */

/* Sets the text of the failure that the method is about to return.
 * Returns 1: `return baton_fail(host, "...");`. */
int32_t baton_fail(struct baton_host *host, const char *text);
/* The same with ": " and the system's text for an errno value. */
int32_t baton_fail_errno(struct baton_host *host, const char *text, int32_t error_number);

/* A line in the log, with -trace module_log. */
void baton_log(struct baton_host *host, const char *text);
/* A line for the person who started the VMM. */
#define BATON_INFO 0
#define BATON_WARNING 1
#define BATON_ERROR 2
void baton_report(struct baton_host *host, int32_t severity, const char *text);

/* Whether this process only tries whether it could take over a guest, beside
 * the VMM that runs it. What baton_find_fd gives here stands in for what was
 * saved: a socket of the same type that is connected to nobody or listens
 * elsewhere, a new eventfd or end of a pipe, the same file or block device open for
 * reading only, /dev/null for anything else. No step but "init" is told here. */
bool baton_is_trial(struct baton_host *host);

/* File descriptors that the next process inherits, by a name (1 to 200 bytes,
 * the module's own: other modules' names do not clash) and an id from 0. The
 * runtime borrows them: they stay the module's, and must stay open while they
 * are saved. */
int32_t baton_save_fd(struct baton_host *host, const char *name, int32_t id, int32_t fd);
/* As baton_save_fd, and no failure when the same fd is saved already. */
int32_t baton_resave_fd(struct baton_host *host, const char *name, int32_t id, int32_t fd);
/* The fd saved under a name, in this process or the one before; -1 if none.
 * In a new process it is the module's from then on. It may be another in "load"
 * than it was in "init": then what "init" has found is to be closed. */
int32_t baton_find_fd(struct baton_host *host, const char *name, int32_t id);
/* Forgets an fd without closing it; does nothing if there is none. */
void baton_delete_fd(struct baton_host *host, const char *name, int32_t id);

/* For preservers with the method "ready": has that called, between the guest's
 * instructions and the VMM's other work, whenever the fd has one of the events,
 * for as long as it has it. The fd is the module's own, and stays it; watching
 * it again changes the events. It has to be given up before it is closed. A
 * process that takes over a guest watches nothing: begin in "commit". */
#define BATON_FD_READABLE 1u
#define BATON_FD_WRITABLE 2u
#define BATON_FD_CLOSED 4u /* the other side has closed it; comes unasked */
#define BATON_FD_FAILED 8u /* it is in error; comes unasked */
int32_t baton_watch(struct baton_host *host, int32_t fd, uint32_t events);
/* Does nothing for an fd that the module does not watch. */
void baton_unwatch(struct baton_host *host, int32_t fd);

/* State for the next process, by a name (1 to 200 bytes). What is put in "survey"
 * is got from "init" on in the process that follows; what is put in "save" and
 * "exec", from "load" on (modes: put in "save", got in "load"). A name can be put
 * again. */
int32_t baton_put_number(struct baton_host *host, const char *name, uint64_t value);
int32_t baton_put_string(struct baton_host *host, const char *name, const char *value);
int32_t baton_put_bytes(struct baton_host *host, const char *name, const void *data, size_t size);
/* Whether the process before put a value of that name. */
bool baton_has(struct baton_host *host, const char *name);
/* Fail when there is none of that name and type, or (numbers) it is greater
 * than limit. What they give is valid until the method returns. */
int32_t baton_get_number(struct baton_host *host, const char *name, uint64_t limit, uint64_t *value);
int32_t baton_get_string(struct baton_host *host, const char *name, const char **value);
int32_t baton_get_bytes(struct baton_host *host, const char *name, const void **data, size_t *size);

/* Why the VM cannot be updated for now; QMP clients see the text. Returns a
 * number for baton_remove_blocker, or 0 after it has set the text of
 * baton_fail: with -only-cpr-capable nothing may block. */
uint32_t baton_add_blocker(struct baton_host *host, const char *reason);
void baton_remove_blocker(struct baton_host *host, uint32_t blocker);

/* Emits an event of the module's table. data: a JSON object, or NULL for none. */
int32_t baton_emit_event(struct baton_host *host, const char *name, const char *data);

/* ---- For modes. */

struct baton_ram_block {
    const char *name; /* valid until the method returns */
    uint64_t length;  /* bytes that the guest sees */
    int32_t fd;       /* the memory's, the runtime's own; -1 if none */
    bool shared;      /* stores reach the fd: another process can map the same memory */
    bool persistent;  /* the contents survive the process and the host's next boot */
};
uint32_t baton_ram_count(struct baton_host *host);
int32_t baton_ram_block(struct baton_host *host, uint32_t index, struct baton_ram_block *block);
/* In "exec": the arguments of the new VMM; NULL behind the last. Valid until
 * the method returns. */
const char *baton_argument(struct baton_host *host, uint32_t index);
/* In "exec": has the new VMM executed in this process, with RAM, preserved fds and
 * state, as soon as the method has returned 0. The guest goes on in a child of this
 * process until the new VMM takes it over, or fails. Returns 0; or a failure, and
 * then nothing is executed. */
int32_t baton_handover(struct baton_host *host);
/* In "connect": has the guest handed over to the VMM at the other end of a connected
 * SOCK_SEQPACKET unix socket, with RAM, preserved fds and state, when the method has
 * returned 0. The guest runs here until that takes it over, or fails. The fd is
 * the runtime's from then on, also after a failure. */
int32_t baton_handover_to(struct baton_host *host, int32_t fd);
/* In "connect": connects to a VMM that waits in baton_receive at the path of a unix
 * socket. peer: the user that it must be of, or -1 for this VMM's or root. Does not
 * block. Returns an fd, the module's own, or -1 after it has set the text of baton_fail. */
int32_t baton_connect(struct baton_host *host, const char *path, int64_t peer);
/* In "receive": listens at the path of a unix socket until a VMM of this one's user
 * or of root has connected. Returns an fd, the module's own, or -1 as baton_connect. */
int32_t baton_receive(struct baton_host *host, const char *path);

/* The VM's -name and -uuid; NULL without. Valid until the method returns. */
const char *baton_vm_name(struct baton_host *host);
const char *baton_vm_uuid(struct baton_host *host);
/* In "find": the guest that "keep" was given, with memory in the same order. All fds are the runtime's from then on,
 * also after a failure. place: where the guest stays should this VMM fail, as a sentence, or NULL. */
int32_t baton_found(
    struct baton_host *host, int32_t state, int32_t checkpoint, const int32_t *memory, uint32_t count,
    const char *place);

/* ---- For memory backends: the object's own options, in "check" and "make". */

/* NULL if the option was not given. Valid until the method returns. */
const char *baton_option(struct baton_host *host, const char *key);
/* Store nothing when the option was not given; fail when it is malformed. */
int32_t baton_option_size(struct baton_host *host, const char *key, uint64_t *bytes);
int32_t baton_option_bool(struct baton_host *host, const char *key, bool *value);

/* ---- What the module needs of a sandbox (-sandbox), beside what every VMM may do. At file scope; each once.
 *
 * It is read from the file when the sandbox is put on, and by its warden when a newer VMM has loaded the module. */

/* A system call, by its number: BATON_NEEDS_SYSTEM_CALL(SYS_userfaultfd). */
#define BATON_NEEDS_SYSTEM_CALL(number) BATON_NEEDS_(system_call, number)
/* A capability, by its number: BATON_NEEDS_CAPABILITY(CAP_NET_ADMIN). */
#define BATON_NEEDS_CAPABILITY(number) BATON_NEEDS_(capability, number)
/* Files that it opens after the start: absolute paths, each followed by \0, as "/dev/one\0/sys/class/two/\0". With a
 * slash at its end it is a directory with all below it. */
#define BATON_NEEDS_PATHS(paths) \
    __attribute__((used, visibility("default"))) const char baton_module_needs_paths[] = paths
#define BATON_NEEDS_(what, number) BATON_NEEDS__(what, number)
#define BATON_NEEDS__(what, number) \
    __attribute__((used, visibility("default"))) const char baton_module_needs_##what##_##number = 0

#ifdef __cplusplus
}
#endif

#endif
