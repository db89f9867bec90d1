//! Events: what is appended to the file `events` beside the library, a line for each.
//!
//! ```text
//! GPU-1 8 79               the GPU, the type of the event, its data
//! ```

use std::{
    ffi::{c_int, c_void},
    fs,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use crate::{
    GPU_IS_LOST, NOT_SUPPORTED, SUCCESS, TIMEOUT, code,
    handles::{Handle, handle},
    numbers,
    scenario::{FOLDER, Scenario, told},
};

/// What was registered, and how much of the file was read.
#[derive(Default)]
pub struct Set {
    registered: Vec<(String, u64)>,
    read: usize,
}

type SetHandle = *const Mutex<Set>;

#[repr(C)]
pub struct EventData {
    device: Handle,
    kind: u64,
    data: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

fn written() -> String {
    fs::read_to_string(FOLDER.join("events")).unwrap_or_default()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: Handle,
    types: *mut u64,
) -> c_int {
    code(unsafe { numbers(device, "events") }.map(|[mask]| unsafe { *types = mask }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut SetHandle) -> c_int {
    unsafe { *set = Box::leak(Box::default()) };
    SUCCESS
}

/// What happened before is not told.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: Handle,
    types: u64,
    set: SetHandle,
) -> c_int {
    let mut set = unsafe { &*set }.lock().unwrap();
    set.registered.push((unsafe { &*device }.clone(), types));
    set.read = written().len();
    // Noted last: whoever has seen it knows that what happens next is told.
    match told(unsafe { &*device }, "register") {
        Ok(_) | Err(NOT_SUPPORTED) => SUCCESS,
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: SetHandle,
    event: *mut EventData,
    timeout_ms: u32,
) -> c_int {
    let until = Instant::now() + Duration::from_millis(timeout_ms.into());
    let mut set = unsafe { &*set }.lock().unwrap();
    loop {
        let written = written();
        // The test may be over, and the file gone.
        let unread = |read| written.get(read..).unwrap_or_default();
        while let Some((line, _)) = unread(set.read).split_once('\n') {
            set.read += line.len() + 1;
            let words: Vec<_> = line.split(' ').collect();
            let (kind, data): (u64, u64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
            let wanted =
                |(uuid, types): &(String, u64)| uuid == words[0] && *types & kind == kind;
            if !set.registered.iter().any(wanted) {
                continue;
            }
            unsafe {
                *event = EventData {
                    device: handle(words[0]),
                    kind,
                    data,
                    gpu_instance: u32::MAX,
                    compute_instance: u32::MAX,
                };
            }
            return SUCCESS;
        }
        let scenario = Scenario::read();
        let lost = |uuid: &str| {
            let card = scenario.cards.iter().find(|card| card.uuid == uuid);
            card.is_none_or(|card| card.answers.get("all").is_some_and(|all| all == "!15"))
        };
        if set.registered.iter().any(|(uuid, _)| lost(uuid)) {
            return GPU_IS_LOST;
        }
        if Instant::now() >= until {
            return TIMEOUT;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// It stays where it is: a few bytes for each test.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(_: *mut c_void) -> c_int {
    SUCCESS
}
