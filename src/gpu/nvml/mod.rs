//! The only module that touches NVML: opens the library, finds a GPU and its MIG instances, and
//! says what went wrong. What they are asked for is in [`card`].

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use nvml_wrapper::{Nvml, error::NvmlError};
use parking_lot::Mutex;

use crate::{
    error::Chain,
    pb::{self, AbsentReason},
};

use self::card::Card;
pub(super) use self::events::Event;
use self::plan::Plan;
use super::Costs;

mod card;
pub(super) mod cost;
mod events;
mod fields;
pub(super) mod pcie;
pub(super) mod plan;

/// The name that the system's loader looks for.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How often the MIG instances of a GPU are looked for.
const LIST_INSTANCES_EVERY: Duration = Duration::from_mins(1);

/// Return codes that the wrapper has no name for.
const VERSION_MISMATCH: u32 = 25;
const DEPRECATED: u32 = 26;
const GPU_NOT_FOUND: u32 = 28;

/// The library, which is open as long as somebody uses it.
#[derive(Debug)]
pub(super) struct Library {
    path: Option<PathBuf>,
    open: Mutex<Weak<Session>>,
}

/// NVML, initialised.
#[derive(Debug)]
pub(super) struct Session {
    nvml: Nvml,
    driver_version: Option<String>,
}

/// Why a GPU cannot be sampled.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// For people.
    pub text: String,
    /// What the values of the GPU are absent for.
    pub reason: AbsentReason,
    /// Whether it concerns every GPU: NVML has to be opened anew.
    pub everywhere: bool,
    /// What it says of the GPU.
    pub trouble: Trouble,
}

/// What a failure says of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is gone.
    Lost,
    /// It is there, but of no use until it is reset.
    ResetRequired,
    /// Nothing: the driver is gone, or is another one.
    Driver,
    /// Nothing.
    Other,
}

/// Which GPU. The UUID stays, the index may change.
#[derive(Debug, Clone)]
pub(super) enum Which {
    Index(u32),
    Uuid(String),
}

/// A GPU and the MIG instances that it is divided into.
pub(super) struct Gpu<'nvml> {
    whole: Card<'nvml>,
    instances: Vec<Card<'nvml>>,
    instances_listed: Option<Instant>,
    /// Makes the plan of an instance.
    plan: Box<dyn Fn() -> Plan>,
}

/// What one round of calls gave: of the GPU itself, then of its MIG instances.
#[derive(Debug)]
pub(super) struct Samples {
    pub stats: Vec<(Arc<pb::Gpu>, pb::GpuStats)>,
    /// Why there will be no more of this GPU, as far as it was found out.
    pub failure: Option<Failure>,
}

impl Library {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            open: Mutex::default(),
        }
    }

    /// Opens the library, or joins those who have it open.
    pub(super) fn open(&self) -> Result<Arc<Session>, Failure> {
        let mut open = self.open.lock();
        if let Some(session) = open.upgrade() {
            return Ok(session);
        }
        let path = self.path.as_deref().unwrap_or(Path::new(LIBRARY));
        let nvml = Nvml::builder()
            .lib_path(path.as_os_str())
            .init()
            .map_err(|error| not_opened(path, error))?;
        let driver_version = nvml.sys_driver_version().ok();
        let session = Arc::new(Session {
            nvml,
            driver_version,
        });
        *open = Arc::downgrade(&session);
        Ok(session)
    }

    /// Joins those who have the library open.
    pub(super) fn joined(&self) -> Option<Arc<Session>> {
        let open = self.open.lock();
        open.upgrade()
    }

    /// Whether this session is the one to join.
    pub(super) fn is_open(&self, session: &Arc<Session>) -> bool {
        let open = self.open.lock();
        std::ptr::eq(open.as_ptr(), Arc::as_ptr(session))
    }

    /// Has the next one open the library anew, even if somebody hangs in this session.
    pub(super) fn discard(&self, session: &Arc<Session>) {
        let mut open = self.open.lock();
        if std::ptr::eq(open.as_ptr(), Arc::as_ptr(session)) {
            *open = Weak::new();
        }
    }
}

impl Session {
    /// How many GPUs there are, those that may not be asked included.
    pub(super) fn count(&self) -> Result<u32, Failure> {
        self.nvml.device_count().map_err(Failure::from)
    }

    /// The UUID of the GPU with this index, unless NVML does not tell it.
    pub(super) fn uuid_at(&self, index: u32) -> Option<String> {
        let device = self.nvml.device_by_index(index);
        device.and_then(|device| device.uuid()).ok()
    }

    /// Returns true if NVML says that there is no such GPU. Other errors say nothing.
    pub(super) fn lacks(&self, uuid: &str) -> bool {
        let error = self.nvml.device_by_uuid(uuid).err();
        error.is_some_and(|error| Trouble::from(&error) == Trouble::Lost)
    }

    /// Finds a GPU. `host` is kept with what is known of it; it and its instances are asked by a
    /// plan each.
    pub(super) fn gpu(
        &self,
        which: &Which,
        host: &str,
        plan: impl Fn() -> Plan + 'static,
    ) -> Result<Gpu<'_>, Failure> {
        let device = match which {
            Which::Index(index) => self.nvml.device_by_index(*index),
            Which::Uuid(uuid) => self.nvml.device_by_uuid(uuid.clone()),
        };
        let device = device.map_err(|error| {
            let failure = Failure::from(error);
            // A GPU that was known and is not found is lost, whatever NVML calls it.
            let reason = match failure.trouble {
                Trouble::Lost => AbsentReason::GpuLost,
                Trouble::ResetRequired | Trouble::Driver | Trouble::Other => failure.reason,
            };
            Failure { reason, ..failure }
        })?;
        let gpu = pb::Gpu {
            uuid: device.uuid()?,
            host: host.into(),
            gpu_index: device
                .index()
                .ok()
                .and_then(|index| i32::try_from(index).ok()),
            name: device.name().ok(),
            pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
            driver_version: self.driver_version.clone(),
            ..Default::default()
        };
        let max_link = device
            .max_pcie_link_gen()
            .ok()
            .zip(device.max_pcie_link_width().ok());
        let whole = Card::new(device, gpu, max_link, plan());
        Ok(Gpu {
            whole,
            instances: Vec::new(),
            instances_listed: None,
            plan: Box::new(plan),
        })
    }
}

impl Gpu<'_> {
    /// What is known of it.
    pub(super) fn facts(&self) -> &Arc<pb::Gpu> {
        &self.whole.gpu
    }

    /// Has the MIG instances listed with the next sample.
    pub(super) fn list_instances_anew(&mut self) {
        self.instances_listed = None;
    }

    /// Asks for everything that is due, and notes what that has cost.
    pub(super) fn sample(&mut self, costs: &Costs) -> Samples {
        self.whole.begin();
        self.whole.failure = None;
        let mig = self.whole.ask("mig_mode", |device| {
            device.mig_mode().map(|mode| mode.current == 1)
        });
        if let Ok(mig) = mig
            && mig != self.whole.mig
        {
            self.whole.mig = mig;
            self.whole.refused.clear();
            self.whole.facts.clear();
            self.instances_listed = None;
        }
        if self
            .instances_listed
            .is_none_or(|listed| listed.elapsed() >= LIST_INSTANCES_EVERY)
        {
            self.list_instances();
        }
        let parts = u32::try_from(1 + self.instances.len()).unwrap_or(u32::MAX);
        self.whole.plan.share(parts);
        let mut stats = vec![(self.whole.gpu.clone(), self.whole.sample())];
        for instance in &mut self.instances {
            instance.begin();
            instance.plan.share(parts);
            instance.failure.clone_from(&self.whole.failure);
            stats.push((instance.gpu.clone(), instance.sample()));
            // It may have been taken apart; the GPU is there all the same.
            if instance.failure.is_some() {
                self.instances_listed = None;
            }
        }
        for card in std::iter::once(&mut self.whole).chain(&mut self.instances) {
            costs.add(&card.gpu.uuid, card.plan.take_costs());
        }
        Samples {
            stats,
            failure: self.whole.failure.clone(),
        }
    }

    fn list_instances(&mut self) {
        self.instances_listed = Some(Instant::now());
        let mut before = std::mem::take(&mut self.instances);
        if !self.whole.mig {
            return;
        }
        // This is how many there can be; most places are empty.
        let places = self.whole.device.mig_device_count().unwrap_or(0);
        for place in 0..places {
            let Ok(device) = self.whole.device.mig_device_by_index(place) else {
                continue;
            };
            let Ok(uuid) = device.uuid() else { continue };
            if let Some(at) = before
                .iter()
                .position(|card| card.gpu.uuid == uuid && card.failure.is_none())
            {
                self.instances.push(before.swap_remove(at));
                continue;
            }
            let whole = &self.whole.gpu;
            let gpu = pb::Gpu {
                uuid,
                name: device.name().ok(),
                mig_parent_uuid: Some(whole.uuid.clone()),
                ..pb::Gpu::clone(whole)
            };
            let mut card = Card::new(device, gpu, None, (self.plan)());
            card.mig = true;
            self.instances.push(card);
        }
    }
}

impl From<NvmlError> for Failure {
    fn from(error: NvmlError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "NVML has many more errors")]
        let reason = match error {
            NvmlError::NotSupported | NvmlError::UnexpectedVariant(DEPRECATED) => {
                AbsentReason::NotSupported
            }
            NvmlError::NoPermission => AbsentReason::NoPermission,
            NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::UnexpectedVariant(VERSION_MISMATCH) => AbsentReason::DriverTooOld,
            NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => AbsentReason::GpuLost,
            _ => AbsentReason::DriverError,
        };
        let everywhere = matches!(
            error,
            NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch
        );
        Self {
            text: explain(&error),
            reason,
            everywhere,
            trouble: Trouble::from(&error),
        }
    }
}

impl From<&NvmlError> for Trouble {
    fn from(error: &NvmlError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "NVML has many more errors")]
        match error {
            // A GPU that was known and is not found has fallen off the bus.
            NvmlError::GpuLost
            | NvmlError::NotFound
            | NvmlError::UnexpectedVariant(GPU_NOT_FOUND) => Self::Lost,
            NvmlError::ResetRequired => Self::ResetRequired,
            NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
            | NvmlError::LibloadingError(_) => Self::Driver,
            _ => Self::Other,
        }
    }
}

/// An error of NVML in plain words.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the others are plain enough"
)]
fn explain(error: &NvmlError) -> String {
    match error {
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".into(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was upgraded, and the one that runs no longer fits its library"
                .into()
        }
        NvmlError::NoPermission => "the server may not talk to the NVIDIA driver".into(),
        error => error.to_string(),
    }
}

/// Why the library could not be opened.
fn not_opened(path: &Path, error: NvmlError) -> Failure {
    let name = path.display();
    let text = if let NvmlError::LibloadingError(error) = &error {
        let error = Chain(error).to_string();
        if error.contains("No such file") {
            format!("{name} was not found")
        } else {
            format!("{name} does not load: {error}")
        }
    } else if let NvmlError::FailedToLoadSymbol(_) = error {
        format!("{name} is not NVML, or an old one")
    } else {
        explain(&error)
    };
    Failure {
        text,
        everywhere: true,
        ..Failure::from(error)
    }
}
