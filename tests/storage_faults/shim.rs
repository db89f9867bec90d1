//! A library to preload that makes file operations fail, as a disk that is full or broken does.
//!
//! It is not part of the crate: `mod.rs` compiles it with rustc alone. Two variables configure the process that it is
//! loaded into:
//! - `WATCHPOST_FAULT_CONTROL`: a file of five 32-bit numbers (see [`Control`]) that the test writes and this library maps;
//! - `WATCHPOST_FAULT_MATCH`: parts of paths, separated by `:`. Only files whose path contains one of them are affected.
#![allow(clippy::missing_safety_doc)]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

/// The operations that can fail; the bits of [`Control::operations`].
const WRITE: u32 = 1;
const SYNC: u32 = 2;
const READ: u32 = 4;
const TRUNCATE: u32 = 8;
/// A write stores half of its bytes before the next one fails.
const SHORT_WRITE: u32 = 16;

/// What the test asks for.
#[repr(C)]
struct Control {
    /// Which operations fail.
    operations: AtomicU32,
    /// The `errno` they fail with.
    errno: AtomicU32,
    /// One in so many of them fails, by chance.
    one_in: AtomicU32,
    /// How many more fail.
    left: AtomicU32,
    /// How many have failed.
    struck: AtomicU32,
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *const c_char;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

const READ_AND_WRITE: c_int = 2;
const READABLE_AND_WRITABLE: c_int = 3;
const SHARED: c_int = 1;
const NEXT: *mut c_void = -1_isize as *mut c_void;

/// The function of this name that the process would call without this library.
macro_rules! real {
    ($name:literal, fn($($argument:ty),*) -> $result:ty) => {{
        static REAL: OnceLock<usize> = OnceLock::new();
        let real = REAL.get_or_init(|| unsafe { dlsym(NEXT, $name.as_ptr()) } as usize);
        unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($argument),*) -> $result>(*real) }
    }};
}

static MATCHED: [AtomicU8; 65_536] = [const { AtomicU8::new(0) }; 65_536];
static RANDOM: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);

fn control() -> Option<&'static Control> {
    static CONTROL: OnceLock<Option<&'static Control>> = OnceLock::new();
    *CONTROL.get_or_init(|| {
        let path = unsafe { getenv(c"WATCHPOST_FAULT_CONTROL".as_ptr()) };
        if path.is_null() {
            return None;
        }
        let open = real!(c"open", fn(*const c_char, c_int, u32) -> c_int);
        let fd = unsafe { open(path, READ_AND_WRITE, 0) };
        if fd < 0 {
            return None;
        }
        let mapped = unsafe {
            mmap(
                null_mut(),
                size_of::<Control>(),
                READABLE_AND_WRITABLE,
                SHARED,
                fd,
                0,
            )
        };
        (mapped as isize != -1).then(|| unsafe { &*mapped.cast::<Control>() })
    })
}

fn is_matched(path: *const c_char) -> bool {
    static PARTS: OnceLock<Vec<String>> = OnceLock::new();
    let parts = PARTS.get_or_init(|| unsafe {
        let parts = getenv(c"WATCHPOST_FAULT_MATCH".as_ptr());
        if parts.is_null() {
            return Vec::new();
        }
        let parts = CStr::from_ptr(parts).to_string_lossy().into_owned();
        parts.split(':').map(str::to_string).collect()
    });
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
    parts.iter().any(|part| path.contains(part.as_str()))
}

fn note(fd: c_int, path: *const c_char) -> c_int {
    if let Ok(place) = usize::try_from(fd)
        && let Some(matched) = MATCHED.get(place)
    {
        matched.store(u8::from(is_matched(path)), Ordering::Relaxed);
    }
    fd
}

/// Whether this operation fails. `errno` is set then.
fn fails(fd: c_int, operation: u32) -> bool {
    let matched = usize::try_from(fd).ok().and_then(|fd| MATCHED.get(fd));
    if matched.is_none_or(|matched| matched.load(Ordering::Relaxed) == 0) {
        return false;
    }
    let Some(control) = control() else {
        return false;
    };
    if control.operations.load(Ordering::Acquire) & operation == 0 {
        return false;
    }
    let random = RANDOM.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    let random = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33;
    if random % u64::from(control.one_in.load(Ordering::Relaxed).max(1)) != 0 {
        return false;
    }
    let taken = control
        .left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
    if taken.is_err() {
        return false;
    }
    control.struck.fetch_add(1, Ordering::Relaxed);
    unsafe { *__errno_location() = control.errno.load(Ordering::Relaxed) as c_int };
    true
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    let real = real!(c"open", fn(*const c_char, c_int, u32) -> c_int);
    note(unsafe { real(path, flags, mode) }, path)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    let real = real!(c"open64", fn(*const c_char, c_int, u32) -> c_int);
    note(unsafe { real(path, flags, mode) }, path)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(at: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
    let real = real!(c"openat", fn(c_int, *const c_char, c_int, u32) -> c_int);
    note(unsafe { real(at, path, flags, mode) }, path)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, from: *const c_void, bytes: usize) -> isize {
    if fails(fd, WRITE) {
        return -1;
    }
    let real = real!(c"write", fn(c_int, *const c_void, usize) -> isize);
    let bytes = if bytes > 1 && fails(fd, SHORT_WRITE) {
        bytes / 2
    } else {
        bytes
    };
    unsafe { real(fd, from, bytes) }
}

macro_rules! positioned {
    ($(fn $name:ident, $text:literal, $from:ty, $length:ty, $operation:expr;)+) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, from: $from, length: $length, at: i64) -> isize {
            if fails(fd, $operation) {
                return -1;
            }
            let real = real!($text, fn(c_int, $from, $length, i64) -> isize);
            unsafe { real(fd, from, length, at) }
        }
    )+};
}
positioned! {
    fn pwrite, c"pwrite", *const c_void, usize, WRITE;
    fn pwrite64, c"pwrite64", *const c_void, usize, WRITE;
    fn pwritev, c"pwritev", *const c_void, c_int, WRITE;
    fn pread, c"pread", *mut c_void, usize, READ;
    fn pread64, c"pread64", *mut c_void, usize, READ;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, to: *mut c_void, bytes: usize) -> isize {
    if fails(fd, READ) {
        return -1;
    }
    let real = real!(c"read", fn(c_int, *mut c_void, usize) -> isize);
    unsafe { real(fd, to, bytes) }
}

macro_rules! on_descriptor {
    ($(fn $name:ident, $text:literal, ($($argument:ident: $type:ty)?), $operation:expr;)+) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int $(, $argument: $type)?) -> c_int {
            if fails(fd, $operation) {
                return -1;
            }
            let real = real!($text, fn(c_int $(, $type)?) -> c_int);
            unsafe { real(fd $(, $argument)?) }
        }
    )+};
}
on_descriptor! {
    fn fsync, c"fsync", (), SYNC;
    fn fdatasync, c"fdatasync", (), SYNC;
    fn ftruncate, c"ftruncate", (length: i64), TRUNCATE;
    fn ftruncate64, c"ftruncate64", (length: i64), TRUNCATE;
}
