//! A library to preload that shifts the wall clock of a process.
//!
//! It is not part of the crate: `mod.rs` compiles it with rustc alone. The variable `WATCHPOST_CLOCK_CONTROL` names a file
//! of one 64-bit number, by how many seconds the clock is ahead, which the test writes and this library maps.
#![allow(clippy::missing_safety_doc)]

use std::{
    ffi::{c_char, c_int, c_long, c_void},
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

#[repr(C)]
pub struct Time {
    seconds: i64,
    fraction: c_long,
}

unsafe extern "C" {
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
}

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;
/// `CLOCK_REALTIME`, and `CLOCK_REALTIME_COARSE`.
const WALL: [c_int; 2] = [0, 5];
const READ_ONLY: c_int = 0;
const READABLE: c_int = 1;
const SHARED: c_int = 1;

/// By how many seconds the clock is ahead.
fn ahead() -> i64 {
    static BUSY: AtomicUsize = AtomicUsize::new(0);
    static CONTROL: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();
    if let Some(control) = CONTROL.get() {
        return control.map_or(0, |control| control.load(Ordering::Acquire));
    }
    // What is called to find the file may ask for the time.
    if BUSY.fetch_add(1, Ordering::AcqRel) > 0 {
        BUSY.fetch_sub(1, Ordering::AcqRel);
        return 0;
    }
    let control = unsafe {
        let path = getenv(c"WATCHPOST_CLOCK_CONTROL".as_ptr());
        let fd = if path.is_null() { -1 } else { open(path, READ_ONLY) };
        let mapped = if fd < 0 {
            -1_isize as *mut c_void
        } else {
            mmap(null_mut(), 8, READABLE, SHARED, fd, 0)
        };
        (mapped as isize != -1).then(|| &*mapped.cast::<AtomicI64>())
    };
    let control = CONTROL.get_or_init(|| control);
    BUSY.fetch_sub(1, Ordering::AcqRel);
    control.map_or(0, |control| control.load(Ordering::Acquire))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Time) -> c_int {
    let result = unsafe { syscall(CLOCK_GETTIME, clock, time) };
    if result == 0 && WALL.contains(&clock) {
        unsafe { (*time).seconds += ahead() };
    }
    result as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut Time, _: *mut c_void) -> c_int {
    let mut now = Time { seconds: 0, fraction: 0 };
    let result = unsafe { clock_gettime(0, &mut now) };
    if !time.is_null() {
        unsafe {
            (*time).seconds = now.seconds;
            (*time).fraction = now.fraction / 1_000;
        }
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(at: *mut i64) -> i64 {
    let mut now = Time { seconds: 0, fraction: 0 };
    unsafe { clock_gettime(0, &mut now) };
    if !at.is_null() {
        unsafe { *at = now.seconds };
    }
    now.seconds
}
