// A preserver in Rust: keeps a total, and a descriptor, over updates, as
// tally.cpp does. The structures are those of baton-module.h; no crate is used.
use std::ffi::{c_char, c_int, c_void, CStr};
use std::ptr::null;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

#[repr(C)]
pub struct Host {
    private: [u8; 0],
}

type Function = unsafe extern "C" fn();

#[repr(C)]
struct Method(*const c_char, *const c_char, Function);

#[repr(C)]
struct Parameter(*const c_char, i64, i64);

#[repr(C)]
struct Command(*const c_char, *const c_char, Function, *const Parameter);

#[repr(C)]
pub struct Descriptor {
    magic: u64,
    size: u32,
    abi: u32,
    kind: *const c_char,
    name: *const c_char,
    version: *const c_char,
    fingerprint: *const c_char,
    capabilities: u64,
    register_module: Option<unsafe extern "C" fn(*mut c_void) -> i32>,
    methods: *const Method,
    method_count: usize,
    commands: *const Command,
    command_count: usize,
    events: *const c_void,
    event_count: usize,
}

// What is pointed at never changes.
unsafe impl Sync for Method {}
unsafe impl Sync for Parameter {}
unsafe impl Sync for Command {}
unsafe impl Sync for Descriptor {}

extern "C" {
    fn baton_fail(host: *mut Host, text: *const c_char) -> i32;
    fn baton_resave_fd(host: *mut Host, name: *const c_char, id: i32, fd: i32) -> i32;
    fn baton_find_fd(host: *mut Host, name: *const c_char, id: i32) -> i32;
    fn baton_put_number(host: *mut Host, name: *const c_char, value: u64) -> i32;
    fn baton_get_number(host: *mut Host, name: *const c_char, limit: u64, value: *mut u64) -> i32;
    fn memfd_create(name: *const c_char, flags: u32) -> c_int;
}

const CLOEXEC: u32 = 1;
static FD: AtomicI32 = AtomicI32::new(-1);
static TOTAL: AtomicU64 = AtomicU64::new(0);

fn fail(host: *mut Host, text: &CStr) -> i32 {
    unsafe { baton_fail(host, text.as_ptr()) }
}

unsafe extern "C" fn add(host: *mut Host, count: u32, total: *mut u64) -> i32 {
    if FD.load(Relaxed) < 0 {
        FD.store(memfd_create(c"tally".as_ptr(), CLOEXEC), Relaxed);
    }
    if FD.load(Relaxed) < 0 {
        return fail(host, c"cannot make memory");
    }
    if count == 13 {
        return fail(host, c"13 is not counted");
    }
    *total = TOTAL.fetch_add(count.into(), Relaxed) + u64::from(count);
    0
}

unsafe extern "C" fn query(_host: *mut Host, total: *mut u64, number: *mut i32) -> i32 {
    *total = TOTAL.load(Relaxed);
    *number = FD.load(Relaxed);
    0
}

unsafe extern "C" fn save(host: *mut Host) -> i32 {
    let fd = FD.load(Relaxed);
    if fd < 0 {
        return 0;
    }
    match baton_resave_fd(host, c"memory".as_ptr(), 0, fd) {
        0 => baton_put_number(host, c"total".as_ptr(), TOTAL.load(Relaxed)),
        error => error,
    }
}

unsafe extern "C" fn load(host: *mut Host) -> i32 {
    let fd = baton_find_fd(host, c"memory".as_ptr(), 0);
    FD.store(fd, Relaxed);
    if fd < 0 {
        return 0;
    }
    let mut total = 0;
    let result = baton_get_number(host, c"total".as_ptr(), u64::MAX, &mut total);
    TOTAL.store(total, Relaxed);
    result
}

// The runtime calls a function by its signature; the table has them all by one type.
type Step = unsafe extern "C" fn(*mut Host) -> i32;
type Query = unsafe extern "C" fn(*mut Host, *mut u64, *mut i32) -> i32;
type Add = unsafe extern "C" fn(*mut Host, u32, *mut u64) -> i32;
const SAVE: Function = unsafe { std::mem::transmute::<Step, Function>(save) };
const LOAD: Function = unsafe { std::mem::transmute::<Step, Function>(load) };
const ADD: Function = unsafe { std::mem::transmute::<Add, Function>(add) };
const QUERY: Function = unsafe { std::mem::transmute::<Query, Function>(query) };

static METHODS: [Method; 3] = [
    Method(c"survey".as_ptr(), c"i(h)".as_ptr(), SAVE),
    Method(c"save".as_ptr(), c"i(h)".as_ptr(), SAVE),
    Method(c"load".as_ptr(), c"i(h)".as_ptr(), LOAD),
];
static ADD_NAMES: [Parameter; 2] = [Parameter(c"count".as_ptr(), 1, 1000), Parameter(c"total".as_ptr(), 0, 0)];
static QUERY_NAMES: [Parameter; 2] = [Parameter(c"total".as_ptr(), 0, 0), Parameter(c"number".as_ptr(), 0, 0)];
static COMMANDS: [Command; 2] = [
    Command(c"tally-add".as_ptr(), c"i(hI>L)".as_ptr(), ADD, ADD_NAMES.as_ptr()),
    Command(c"tally-query".as_ptr(), c"i(h>Li)".as_ptr(), QUERY, QUERY_NAMES.as_ptr()),
];
static DESCRIPTOR: Descriptor = Descriptor {
    magic: 0x444f_4d4e_4f54_4142,
    size: std::mem::size_of::<Descriptor>() as u32,
    abi: 2,
    kind: c"preserver".as_ptr(),
    name: c"tally".as_ptr(),
    version: c"1.0".as_ptr(),
    fingerprint: null(),
    capabilities: 0,
    register_module: None,
    methods: METHODS.as_ptr(),
    method_count: METHODS.len(),
    commands: COMMANDS.as_ptr(),
    command_count: COMMANDS.len(),
    events: null(),
    event_count: 0,
};

#[no_mangle]
pub extern "C" fn baton_module_query() -> *const Descriptor {
    &DESCRIPTOR
}
