//! Which GPUs and MIG instances there are, and the handles that stand for them.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int},
    sync::Mutex,
};

use crate::{
    INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, SUCCESS, code, put_text,
    scenario::{Scenario, told},
};

/// The UUID of a GPU or of an instance: it stays valid whatever becomes of the file.
pub(crate) type Handle = *const String;

static HANDLES: Mutex<BTreeMap<String, &'static String>> = Mutex::new(BTreeMap::new());

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut u32) -> c_int {
    unsafe { *count = Scenario::read().whole().count() as u32 };
    SUCCESS
}

unsafe fn put_handle(uuid: Option<&str>, device: *mut Handle) -> c_int {
    let Some(uuid) = uuid else { return NOT_FOUND };
    // Only what is said of the card as a whole counts: there is no answer of its own.
    match told(uuid, "handle") {
        Ok(_) | Err(NOT_SUPPORTED) => unsafe { *device = handle(uuid) },
        Err(code) => return code,
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: *mut Handle) -> c_int {
    let scenario = Scenario::read();
    match scenario.whole().nth(index as usize) {
        Some(card) => unsafe { put_handle(Some(&card.uuid), device) },
        None => INVALID_ARGUMENT,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut Handle,
) -> c_int {
    let uuid = unsafe { CStr::from_ptr(uuid) }
        .to_string_lossy()
        .into_owned();
    let scenario = Scenario::read();
    let card = scenario.cards.iter().find(|card| card.uuid == uuid);
    unsafe { put_handle(card.map(|card| card.uuid.as_str()), device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: Handle,
    uuid: *mut c_char,
    length: u32,
) -> c_int {
    unsafe { put_text(&*device, uuid, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: Handle, index: *mut u32) -> c_int {
    let at = Scenario::read()
        .whole()
        .position(|card| card.uuid == unsafe { &*device }.as_str());
    code(at.map(|at| unsafe { *index = at as u32 }).ok_or(NOT_FOUND))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(_: Handle, count: *mut u32) -> c_int {
    unsafe { *count = 7 };
    SUCCESS
}

/// Every second place is empty, as places are where instances were taken apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Handle,
    index: u32,
    mig: *mut Handle,
) -> c_int {
    let scenario = Scenario::read();
    let at = (index % 2 == 1).then_some(index as usize / 2);
    let instance = at.and_then(|at| scenario.instances(unsafe { &*device }).nth(at));
    unsafe { put_handle(instance.map(|card| card.uuid.as_str()), mig) }
}

pub(crate) fn handle(uuid: &str) -> Handle {
    let mut handles = HANDLES.lock().unwrap();
    *handles
        .entry(uuid.into())
        .or_insert_with(|| Box::leak(Box::new(uuid.to_string())))
}
