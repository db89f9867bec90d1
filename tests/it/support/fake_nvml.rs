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
        Self::with(
            LIBRARY.get_or_init(|| compile(&["--cfg", "old_driver"])),
            cards,
        )
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
            let parent = card
                .parent
                .as_ref()
                .map(|parent| format!(" of {parent}"))
                .unwrap_or_default();
            writeln!(scenario, "[{}{parent}]", card.uuid).unwrap();
            for (call, answer) in &card.answers {
                writeln!(scenario, "{call} = {answer}").unwrap();
            }
        }
        // Renamed into its place: the library may be reading.
        let new = self.folder.path().join("scenario.new");
        fs::write(&new, scenario).expect("a file in a directory of ours");
        fs::rename(new, self.folder.path().join("scenario"))
            .expect("a file in a directory of ours");
    }

    /// Something happens to a GPU: an event of this type, as NVML numbers them.
    pub fn happens(&self, uuid: &str, kind: u64, data: u64) {
        let events = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("events"));
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
        calls
            .lines()
            .filter(|line| line.split_once(' ') == Some((uuid, call)))
            .count()
    }
}

impl Card {
    /// A card for a desk: a fan, a video encoder, an absolute slowdown temperature.
    pub fn geforce(uuid: &str) -> Self {
        Self::new(uuid, "NVIDIA GeForce RTX 4080 SUPER")
            .with("utilization", "37 12")
            .with("memory", "1610612736 463470592 17171480576")
            .with("temperature", "51")
            .with("power_usage", "87654")
            .with("power_limit", "320000")
            .with("fans", "2")
            .with("fan_speed_0", "30")
            .with("fan_speed_1", "34")
            .with("sm_clock", "2535")
            .with("sm_clock_max", "3105")
            .with("memory_clock", "11501")
            .with("memory_clock_max", "11502")
            .with("pstate", "2")
            .with("throttle_reasons", "4")
            .with("processes", "3")
            .with("pcie_replay_counter", "0")
            .with("temp_slowdown_threshold", "96")
            .with("pcie_link_gen", "4")
            .with("pcie_link_width", "16")
            .with("pcie_link_gen_max", "4")
            .with("pcie_link_width_max", "16")
            .with("pcie_bytes", "wide 300000000 700000000")
            .with("encoder_utilization", "21")
            .with("decoder_utilization", "64")
            .with("bar1", "16777216 17179869184")
            .with("energy", "123456789012")
            .with("power_instant", "119880")
    }

    /// A card for a data centre: no fan, a slowdown temperature that is only a margin, and a
    /// replay counter that does not start at 0.
    pub fn h200(uuid: &str) -> Self {
        Self::geforce(uuid)
            .with("name", "NVIDIA H200")
            .with("fans", "!3")
            .with("fan_speed_0", "!3")
            .with("temp_slowdown_threshold", "4294967294")
            .with("mig_mode", "0")
            .with("pstate", "0")
            .with("throttle_reasons", "1")
            .with("pcie_replay_counter", "4")
            .with("encoder_utilization", "0")
            .with("memory_temperature", "38")
    }

    /// A data-centre card that is divided: it does not tell how busy it is.
    pub fn h100_divided(uuid: &str) -> Self {
        Self::h200(uuid)
            .with("name", "NVIDIA H100 80GB HBM3")
            .with("mig_mode", "1")
            .with("utilization", "!3")
            .with("encoder_utilization", "!3")
            .with("decoder_utilization", "!3")
    }

    /// A part of a divided card: little more than its memory is known.
    pub fn instance(uuid: &str, parent: &str) -> Self {
        let answers = BTreeMap::new();
        Self {
            uuid: uuid.into(),
            parent: Some(parent.into()),
            answers,
        }
        .with("name", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
        .with("memory", "15728640 0 10200547328")
    }

    fn new(uuid: &str, name: &str) -> Self {
        Self {
            uuid: uuid.into(),
            parent: None,
            answers: BTreeMap::new(),
        }
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
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    fs::read(library).expect("the library that was compiled")
}
