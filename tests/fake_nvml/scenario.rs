//! The file that says what the GPUs are, and the one that the calls are noted in.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    fs,
    io::Write,
    path::PathBuf,
    sync::{Arc, LazyLock, OnceLock, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Answer, GPU_IS_LOST, LIB_RM_VERSION_MISMATCH, NOT_SUPPORTED, OPENED, UNINITIALIZED, UNKNOWN,
    USERS, nvmlInit_v2,
};

pub(crate) static FOLDER: LazyLock<PathBuf> = LazyLock::new(folder);

#[derive(Default)]
pub(crate) struct Scenario {
    pub(crate) general: BTreeMap<String, String>,
    pub(crate) cards: Vec<Card>,
}

#[derive(Default)]
pub(crate) struct Card {
    pub(crate) uuid: String,
    pub(crate) parent: Option<String>,
    pub(crate) answers: BTreeMap<String, String>,
}

impl Scenario {
    pub(crate) fn read() -> Arc<Self> {
        static FROZEN: OnceLock<Arc<Scenario>> = OnceLock::new();
        if let Some(frozen) = FROZEN.get() {
            return frozen.clone();
        }
        let scenario = Arc::new(Self::parse());
        if scenario.is_frozen() {
            let _ = FROZEN.set(scenario.clone());
        }
        scenario
    }

    fn is_frozen(&self) -> bool {
        self.general.contains_key("frozen")
    }

    fn parse() -> Self {
        let text = fs::read_to_string(FOLDER.join("scenario")).unwrap_or_default();
        let mut scenario = Self::default();
        for line in text.lines() {
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|line| line.strip_suffix(']'))
            {
                let (uuid, parent) = match name.split_once(" of ") {
                    Some((uuid, parent)) => (uuid, Some(parent.to_string())),
                    None => (name, None),
                };
                scenario.cards.push(Card {
                    uuid: uuid.into(),
                    parent,
                    ..Card::default()
                });
            } else if let Some((key, value)) = line.split_once(" = ") {
                let answers = scenario
                    .cards
                    .last_mut()
                    .map_or(&mut scenario.general, |card| &mut card.answers);
                answers.insert(key.into(), value.into());
            }
        }
        scenario
    }

    pub(crate) fn whole(&self) -> impl Iterator<Item = &Card> {
        self.cards.iter().filter(|card| card.parent.is_none())
    }

    pub(crate) fn instances<'a>(&'a self, parent: &'a str) -> impl Iterator<Item = &'a Card> {
        self.cards
            .iter()
            .filter(move |card| card.parent.as_deref() == Some(parent))
    }
}

/// What is said of a call about the library itself.
pub(crate) fn general(key: &str) -> Answer<String> {
    loop {
        match Scenario::read().general.get(key).map(String::as_str) {
            Some("hang") => thread::sleep(Duration::from_millis(2)),
            Some(text) => return reading(text),
            None => return Ok(String::new()),
        }
    }
}

/// What is said of a call about a GPU.
pub(crate) fn told(uuid: &str, key: &str) -> Answer<String> {
    if USERS.load(Ordering::SeqCst) == 0 {
        return Err(UNINITIALIZED);
    }
    let reopen = general("reopen")?.parse().unwrap_or(0);
    if OPENED.load(Ordering::SeqCst) < reopen {
        return Err(LIB_RM_VERSION_MISMATCH);
    }
    let began = Instant::now();
    let scenario = Scenario::read();
    if !scenario.is_frozen() {
        note(uuid, key);
    }
    let answer = answer(uuid, key);
    take_time(&scenario, uuid, key, began);
    answer
}

fn answer(uuid: &str, key: &str) -> Answer<String> {
    loop {
        let scenario = Scenario::read();
        let Some(card) = scenario.cards.iter().find(|card| card.uuid == uuid) else {
            return Err(GPU_IS_LOST);
        };
        match card
            .answers
            .get("all")
            .or_else(|| card.answers.get(key))
            .map(String::as_str)
        {
            Some("hang") => thread::sleep(Duration::from_millis(2)),
            Some(text) => return reading(text),
            None => return Err(NOT_SUPPORTED),
        }
    }
}

fn note(uuid: &str, key: &str) {
    let calls = fs::File::options()
        .create(true)
        .append(true)
        .open(FOLDER.join("calls"));
    if let Ok(mut calls) = calls {
        let _ = calls.write_all(format!("{uuid} {key}\n").as_bytes());
    }
}

/// Has the call take as long as is said of it. A short one keeps the processor busy, as in the driver;
/// a long one waits for the card.
fn take_time(scenario: &Scenario, uuid: &str, key: &str, began: Instant) {
    let Some(card) = scenario.cards.iter().find(|card| card.uuid == uuid) else {
        return;
    };
    let micros = card.answers.get(&format!("{key}.us"));
    let micros = micros.or_else(|| card.answers.get("us"));
    let Some(micros) = micros.and_then(|micros| micros.parse().ok()) else {
        return;
    };
    let time = Duration::from_micros(micros);
    if micros >= 100 {
        thread::sleep(time.saturating_sub(began.elapsed()));
    }
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn reading(text: &str) -> Answer<String> {
    match text.strip_prefix('!') {
        Some(code) => Err(code.parse().unwrap_or(UNKNOWN)),
        None => Ok(text.into()),
    }
}

/// The folder that this library was loaded from.
fn folder() -> PathBuf {
    #[repr(C)]
    struct Info {
        file: *const c_char,
        base: *mut c_void,
        symbol: *const c_char,
        address: *mut c_void,
    }
    unsafe extern "C" {
        fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
    }
    unsafe {
        let mut info = std::mem::zeroed::<Info>();
        dladdr(nvmlInit_v2 as *const c_void, &mut info);
        let file = CStr::from_ptr(info.file).to_string_lossy().into_owned();
        PathBuf::from(file).parent().unwrap().to_path_buf()
    }
}
