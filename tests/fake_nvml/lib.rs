//! A `libnvidia-ml.so.1` whose GPUs are a text file: the real code for GPUs runs against it.
//!
//! It is not part of the crate: `it/support/fake_nvml.rs` compiles it with rustc alone. It reads
//! the file `scenario` that lies beside the library, at every call, so that a test can change what
//! the GPUs are while they are sampled, and it writes the calls made to the file `calls`.
//!
//! ```text
//! driver = 580.95.05
//! init = !9                what opening the library gives
//! reopen = 2               calls fail until it was opened so often, as after a driver upgrade
//! frozen = 1               the file is not read again, nor are calls noted: for measurements
//! [GPU-1]
//! name = NVIDIA L40S
//! temperature = 41         the numbers that the call gives
//! fans = !3                the return code of the call; 3, not supported, where nothing is said
//! power_usage = hang       does not return until the file says something else
//! power_usage.us = 365     the call takes so many microseconds
//! us = 5                   and every other one so many
//! all = !15                said of every call about this GPU
//! events = 8               the types of events that it can tell of
//! [MIG-1 of GPU-1]
//! ```
//!
//! What happens is appended to the file `events`, see there.
#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::{
    ffi::{c_char, c_int},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use handles::Handle;
use scenario::{general, told};

mod events;
mod handles;
mod scenario;

const SUCCESS: c_int = 0;
const UNINITIALIZED: c_int = 1;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const INSUFFICIENT_SIZE: c_int = 7;
const TIMEOUT: c_int = 10;
const GPU_IS_LOST: c_int = 15;
const LIB_RM_VERSION_MISMATCH: c_int = 18;
#[cfg(not(old_driver))]
const ARGUMENT_VERSION_MISMATCH: c_int = 25;
const UNKNOWN: c_int = 999;

type Answer<T> = Result<T, c_int>;

static USERS: AtomicU32 = AtomicU32::new(0);
static OPENED: AtomicU32 = AtomicU32::new(0);
static LOADED: LazyLock<Instant> = LazyLock::new(Instant::now);

unsafe fn text_of(device: Handle, key: &str) -> Answer<String> {
    if device.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    told(unsafe { &*device }, key)
}

unsafe fn numbers<const N: usize>(device: Handle, key: &str) -> Answer<[u64; N]> {
    let text = unsafe { text_of(device, key) }?;
    let numbers: Vec<u64> = text
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    numbers.try_into().map_err(|_| UNKNOWN)
}

fn code(answer: Answer<()>) -> c_int {
    answer.err().unwrap_or(SUCCESS)
}

unsafe fn put_text(text: &str, to: *mut c_char, length: u32) -> c_int {
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        *to.add(text.len()) = 0;
    }
    SUCCESS
}

/// Calls that give one number, or one for each value of a second argument.
macro_rules! calls {
    ($($function:ident($($argument:ident)?) = $key:expr;)+) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $function(
            device: Handle,
            $($argument: u32,)?
            value: *mut u32,
        ) -> c_int {
            code(unsafe { numbers(device, $key) }.map(|[number]| unsafe { *value = number as u32 }))
        }
    )+};
}

calls! {
    nvmlDeviceGetTemperature(sensor) = if sensor == 0 { "temperature" } else { "?" };
    nvmlDeviceGetTemperatureThreshold(which) = ["?", "temp_slowdown_threshold"][which as usize];
    nvmlDeviceGetClockInfo(clock) = ["?", "sm_clock", "memory_clock"][clock as usize];
    nvmlDeviceGetMaxClockInfo(clock) = ["?", "sm_clock_max", "memory_clock_max"][clock as usize];
    nvmlDeviceGetPowerUsage() = "power_usage";
    nvmlDeviceGetEnforcedPowerLimit() = "power_limit";
    nvmlDeviceGetFanSpeed_v2(fan) = &format!("fan_speed_{fan}");
    nvmlDeviceGetPerformanceState() = "pstate";
    nvmlDeviceGetPcieReplayCounter() = "pcie_replay_counter";
    nvmlDeviceGetCurrPcieLinkGeneration() = "pcie_link_gen";
    nvmlDeviceGetCurrPcieLinkWidth() = "pcie_link_width";
    nvmlDeviceGetMaxPcieLinkGeneration() = "pcie_link_gen_max";
    nvmlDeviceGetMaxPcieLinkWidth() = "pcie_link_width_max";
    nvmlDeviceGetPcieThroughput(counter) = ["pcie_sent", "pcie_received"][counter as usize];
}

#[cfg(not(old_driver))]
calls! {
    nvmlDeviceGetNumFans() = "fans";
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlInit_v2() -> c_int {
    LazyLock::force(&LOADED);
    code(general("init").map(|_| {
        USERS.fetch_add(1, Ordering::SeqCst);
        OPENED.fetch_add(1, Ordering::SeqCst);
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlShutdown() -> c_int {
    USERS.fetch_sub(1, Ordering::SeqCst);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: u32) -> c_int {
    match general("driver") {
        Ok(text) => unsafe { put_text(&text, version, length) },
        Err(code) => code,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: Handle,
    name: *mut c_char,
    length: u32,
) -> c_int {
    match unsafe { text_of(device, "name") } {
        Ok(text) => unsafe { put_text(&text, name, length) },
        Err(code) => code,
    }
}

#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: u32,
    bus: u32,
    device: u32,
    device_id: u32,
    subsystem_id: u32,
    bus_id: [c_char; 32],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: Handle, info: *mut PciInfo) -> c_int {
    match unsafe { text_of(device, "pci_bus_id") } {
        Ok(text) => unsafe { put_text(&text, (*info).bus_id.as_mut_ptr(), 32) },
        Err(code) => code,
    }
}

#[repr(C)]
pub struct Utilization {
    gpu: u32,
    memory: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: Handle,
    rates: *mut Utilization,
) -> c_int {
    code(
        unsafe { numbers(device, "utilization") }.map(|[gpu, memory]| unsafe {
            *rates = Utilization {
                gpu: gpu as u32,
                memory: memory as u32,
            };
        }),
    )
}

#[repr(C)]
pub struct Memory {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

#[cfg(not(old_driver))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: *mut Memory) -> c_int {
    if unsafe { (*memory).version } != size_of::<Memory>() as u32 | 2 << 24 {
        return ARGUMENT_VERSION_MISMATCH;
    }
    code(
        unsafe { numbers(device, "memory") }.map(|[used, reserved, total]| unsafe {
            let free = total.saturating_sub(used + reserved);
            *memory = Memory {
                version: (*memory).version,
                total,
                reserved,
                free,
                used,
            };
        }),
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: Handle,
    mask: *mut u64,
) -> c_int {
    code(unsafe { numbers(device, "throttle_reasons") }.map(|[reasons]| unsafe { *mask = reasons }))
}

#[cfg(not(old_driver))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: *mut u32,
    processes: *mut std::ffi::c_void,
) -> c_int {
    match unsafe { numbers(device, "processes") } {
        Ok([0]) => unsafe { *count = 0 },
        Ok([there]) if processes.is_null() => {
            unsafe { *count = there as u32 };
            return INSUFFICIENT_SIZE;
        }
        Ok(_) => return INVALID_ARGUMENT,
        Err(code) => return code,
    }
    SUCCESS
}

unsafe fn put_engine(device: Handle, key: &str, utilization: *mut u32, period: *mut u32) -> c_int {
    code(unsafe { numbers(device, key) }.map(|[busy]| unsafe {
        *utilization = busy as u32;
        *period = 167_000;
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: Handle,
    busy: *mut u32,
    period: *mut u32,
) -> c_int {
    unsafe { put_engine(device, "encoder_utilization", busy, period) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: Handle,
    busy: *mut u32,
    period: *mut u32,
) -> c_int {
    unsafe { put_engine(device, "decoder_utilization", busy, period) }
}

#[repr(C)]
pub struct Bar1 {
    total: u64,
    free: u64,
    used: u64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBAR1MemoryInfo(device: Handle, bar1: *mut Bar1) -> c_int {
    code(
        unsafe { numbers(device, "bar1") }.map(|[used, total]| unsafe {
            *bar1 = Bar1 {
                total,
                free: total - used,
                used,
            };
        }),
    )
}

#[repr(C)]
pub struct FieldValue {
    field: u32,
    scope: u32,
    timestamp: i64,
    latency: i64,
    kind: u32,
    code: c_int,
    value: u64,
}

/// The two PCIe byte counters: `wide` or `narrow`, and the bytes sent and received per second; the
/// present power, and the temperature of the memory.
#[cfg(not(old_driver))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Handle,
    count: c_int,
    values: *mut FieldValue,
) -> c_int {
    let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
    let pcie = values.iter().any(|value| matches!(value.field, 197 | 198));
    let bytes = if pcie {
        unsafe { text_of(device, "pcie_bytes") }
    } else {
        Err(NOT_SUPPORTED)
    };
    // The call itself goes well where single fields are not supported.
    if let Err(code) = bytes
        && code != NOT_SUPPORTED
    {
        return code;
    }
    let words: Vec<_> = bytes
        .iter()
        .flat_map(|text| text.split_whitespace())
        .collect();
    for value in values {
        let answer = match value.field {
            197 => moved(&words, 1),
            198 => moved(&words, 2),
            186 => unsafe { numbers(device, "power_instant") }.map(|[power]| (1, power)),
            82 => unsafe { numbers(device, "memory_temperature") }.map(|[degrees]| (1, degrees)),
            _ => Err(NOT_SUPPORTED),
        };
        // Newer drivers number some fields otherwise: who looks for a number finds the wrong one.
        value.field += 1000;
        match answer {
            Ok((kind, number)) => {
                value.code = SUCCESS;
                (value.kind, value.value) = (kind, number);
            }
            Err(code) => value.code = code,
        }
    }
    SUCCESS
}

/// A byte counter: its type, and how far it has come.
#[cfg(not(old_driver))]
fn moved(words: &[&str], at: usize) -> Answer<(u32, u64)> {
    let rate = words.get(at).and_then(|rate| rate.parse::<f64>().ok());
    let rate = rate.ok_or(NOT_SUPPORTED)?;
    let bytes = 1_000_000 + (rate * LOADED.elapsed().as_secs_f64()) as u64;
    Ok(if words[0] == "wide" {
        (3, bytes)
    } else {
        (1, bytes & 0xffff_ffff)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(
    device: Handle,
    energy: *mut u64,
) -> c_int {
    code(unsafe { numbers(device, "energy") }.map(|[total]| unsafe { *energy = total }))
}

#[cfg(not(old_driver))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Handle,
    current: *mut u32,
    pending: *mut u32,
) -> c_int {
    code(unsafe { numbers(device, "mig_mode") }.map(|[mode]| unsafe {
        *current = mode as u32;
        *pending = mode as u32;
    }))
}
