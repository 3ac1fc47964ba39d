// A preserver in Zig: keeps a total, and a descriptor, over updates, as
// tally.cpp does. The structures are those of baton-module.h.
const Host = opaque {};
const Function = *const fn () callconv(.c) void;
const String = [*:0]const u8;

const Method = extern struct { name: String, signature: String, function: Function };
const Parameter = extern struct { name: String, minimum: i64 = 0, maximum: i64 = 0 };
const Command = extern struct { name: String, signature: String, function: Function, parameters: [*]const Parameter };
const Descriptor = extern struct {
    magic: u64 = 0x444f4d4e4f544142,
    size: u32 = @sizeOf(Descriptor),
    abi: u32 = 2,
    kind: String,
    name: String,
    version: String,
    fingerprint: ?String = null,
    capabilities: u64 = 0,
    register_module: ?*const fn (*anyopaque) callconv(.c) i32 = null,
    methods: [*]const Method,
    method_count: usize,
    commands: [*]const Command,
    command_count: usize,
    events: ?*const anyopaque = null,
    event_count: usize = 0,
};

extern fn baton_fail(host: *Host, text: String) i32;
extern fn baton_resave_fd(host: *Host, name: String, id: i32, fd: i32) i32;
extern fn baton_find_fd(host: *Host, name: String, id: i32) i32;
extern fn baton_put_number(host: *Host, name: String, value: u64) i32;
extern fn baton_get_number(host: *Host, name: String, limit: u64, value: *u64) i32;
extern fn memfd_create(name: String, flags: c_uint) c_int;

var memory: c_int = -1;
var counted: u64 = 0;

fn add(host: *Host, count: u32, total: *u64) callconv(.c) i32 {
    if (memory < 0) memory = memfd_create("tally", 1);
    if (memory < 0) return baton_fail(host, "cannot make memory");
    if (count == 13) return baton_fail(host, "13 is not counted");
    counted += count;
    total.* = counted;
    return 0;
}

fn query(_: *Host, total: *u64, number: *i32) callconv(.c) i32 {
    total.* = counted;
    number.* = memory;
    return 0;
}

fn save(host: *Host) callconv(.c) i32 {
    if (memory < 0) return 0;
    const result = baton_resave_fd(host, "memory", 0, memory);
    return if (result != 0) result else baton_put_number(host, "total", counted);
}

fn load(host: *Host) callconv(.c) i32 {
    memory = baton_find_fd(host, "memory", 0);
    return if (memory < 0) 0 else baton_get_number(host, "total", ~@as(u64, 0), &counted);
}

const methods = [_]Method{
    .{ .name = "survey", .signature = "i(h)", .function = @ptrCast(&save) },
    .{ .name = "save", .signature = "i(h)", .function = @ptrCast(&save) },
    .{ .name = "load", .signature = "i(h)", .function = @ptrCast(&load) },
};
const add_names = [_]Parameter{ .{ .name = "count", .minimum = 1, .maximum = 1000 }, .{ .name = "total" } };
const query_names = [_]Parameter{ .{ .name = "total" }, .{ .name = "number" } };
const commands = [_]Command{
    .{ .name = "tally-add", .signature = "i(hI>L)", .function = @ptrCast(&add), .parameters = &add_names },
    .{ .name = "tally-query", .signature = "i(h>Li)", .function = @ptrCast(&query), .parameters = &query_names },
};
const descriptor = Descriptor{
    .kind = "preserver",
    .name = "tally",
    .version = "1.0",
    .methods = &methods,
    .method_count = methods.len,
    .commands = &commands,
    .command_count = commands.len,
};

export fn baton_module_query() *const Descriptor {
    return &descriptor;
}
