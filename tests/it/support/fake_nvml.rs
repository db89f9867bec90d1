//! GPUs without GPUs: a fake NVML library of its own for every test.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

// Relative to this file, for whoever includes it from elsewhere.
#[path = "fake_nvml/profiles.rs"]
mod profiles;

/// A library, and the GPUs that it knows of, which a test may change at any time.
pub struct FakeNvml {
    folder: TempDir,
}

/// A GPU or a MIG instance: what the driver answers to each call. `!3` is a return code, `hang`
/// does not return.
#[derive(Debug, Clone)]
pub struct Card {
    pub uuid: String,
    parent: Option<String>,
    answers: BTreeMap<&'static str, String>,
}

impl FakeNvml {
    /// A driver of today.
    pub fn new(cards: &[Card]) -> Self {
        static LIBRARY: OnceLock<Vec<u8>> = OnceLock::new();
        Self::with(LIBRARY.get_or_init(|| compile(&[])), cards)
    }

    /// A driver that lacks what was added over the last ten years.
    pub fn of_an_old_driver(cards: &[Card]) -> Self {
        static LIBRARY: OnceLock<Vec<u8>> = OnceLock::new();
        Self::with(LIBRARY.get_or_init(|| compile(&["--cfg", "old_driver"])), cards)
    }

    /// The file is copied, since the loader gives all who open one file the same library.
    fn with(library: &[u8], cards: &[Card]) -> Self {
        let folder = TempDir::with_prefix("watchpost-nvml-").expect("a temporary directory");
        let fake = Self { folder };
        fs::write(fake.library(), library).expect("a file in a directory of ours");
        fake.set(cards);
        fake
    }

    /// Where the library is.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// From now on these are the GPUs.
    pub fn set(&self, cards: &[Card]) {
        self.set_with("driver = 580.95.05", cards);
    }

    /// The same, with other answers to calls that are not about a GPU.
    pub fn set_with(&self, general: &str, cards: &[Card]) {
        let mut scenario = format!("{general}\n");
        for card in cards {
            let parent = card.parent.as_ref().map(|parent| format!(" of {parent}")).unwrap_or_default();
            writeln!(scenario, "[{}{parent}]", card.uuid).unwrap();
            for (call, answer) in &card.answers {
                writeln!(scenario, "{call} = {answer}").unwrap();
            }
        }
        // Renamed into its place: the library may be reading.
        let new = self.folder.path().join("scenario.new");
        fs::write(&new, scenario).expect("a file in a directory of ours");
        fs::rename(new, self.folder.path().join("scenario")).expect("a file in a directory of ours");
    }

    /// Something happens to a GPU: an event of this type, as NVML numbers them.
    pub fn happens(&self, uuid: &str, kind: u64, data: u64) {
        let events = fs::File::options().create(true).append(true).open(self.folder.path().join("events"));
        events
            .and_then(|mut events| events.write_all(format!("{uuid} {kind} {data}\n").as_bytes()))
            .expect("a file in a directory of ours");
    }

    /// What takes the place of `/sys`: there, GPUs are awake unless `sleeps` says so.
    pub fn sysfs(&self) -> PathBuf {
        self.folder.path().join("sys")
    }

    /// Has the kernel say that the GPU at this address sleeps, or does not.
    pub fn sleeps(&self, address: &str, asleep: bool) {
        let power = self.sysfs().join("bus/pci/devices").join(address);
        let power = power.join("power");
        fs::create_dir_all(&power).expect("a folder in a directory of ours");
        let status = if asleep { "suspended\n" } else { "active\n" };
        fs::write(power.join("runtime_status"), status).expect("a file in it");
    }

    /// How often a call about a GPU was made.
    pub fn calls(&self, uuid: &str, call: &str) -> usize {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.split_once(' ') == Some((uuid, call))).count()
    }
}

impl Card {
    fn new(uuid: &str, name: &str) -> Self {
        Self { uuid: uuid.into(), parent: None, answers: BTreeMap::new() }
            .with("name", name)
            .with("pci_bus_id", "00000000:01:00.0")
    }

    /// The same with another answer to this call.
    pub fn with(mut self, call: &'static str, answer: &str) -> Self {
        self.answers.insert(call, answer.into());
        self
    }
}

/// Compiles the library with rustc alone: it has no dependencies, and the lints of the crate are
/// not for it.
fn compile(options: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nvml/lib.rs");
    let folder = TempDir::with_prefix("watchpost-nvml-").expect("a temporary directory");
    let library = folder.path().join("libnvidia-ml.so.1");
    let compiled = Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-O"])
        .args(options)
        .arg(source)
        .arg("-o")
        .arg(&library)
        .output()
        .expect("rustc, which has compiled this test");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    fs::read(library).expect("the library that was compiled")
}
