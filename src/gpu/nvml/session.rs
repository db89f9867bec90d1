//! The NVML library: opens it, finds a GPU and its MIG instances, and samples them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use nvml_wrapper::Nvml;
use parking_lot::Mutex;

use super::{
    card::Card,
    cost::Costs,
    failure::{Failure, FailureKind, open_failure},
    plan::CallPlan,
};
use crate::pb::{self, AbsentReason};

/// Library name for the system's loader.
const DEFAULT_LIBRARY: &str = "libnvidia-ml.so.1";

/// Time between two listings of the MIG instances of a GPU.
const INSTANCE_LIST_INTERVAL: Duration = Duration::from_mins(1);

/// NVML library. Stays open while a session is in use.
#[derive(Debug)]
pub(in crate::gpu) struct Library {
    path: Option<PathBuf>,
    open: Mutex<Weak<Session>>,
}

/// Initialised NVML.
#[derive(Debug)]
pub(in crate::gpu) struct Session {
    pub(super) nvml: Nvml,
    driver_version: Option<String>,
}

/// Selector of a GPU. The UUID is stable, the index may change.
#[derive(Debug, Clone)]
pub(in crate::gpu) enum GpuSelector {
    Index(u32),
    Uuid(String),
}

/// GPU with its MIG instances.
pub(in crate::gpu) struct Gpu<'nvml> {
    whole: Card<'nvml>,
    instances: Vec<Card<'nvml>>,
    instances_listed: Option<Instant>,
    /// Creates the call plan of an instance.
    plan: Box<dyn Fn() -> CallPlan>,
}

/// Results of one round of calls: the sample of the GPU, followed by the samples of its MIG
/// instances.
#[derive(Debug)]
pub(in crate::gpu) struct Samples {
    pub stats: Vec<(Arc<pb::Gpu>, pb::GpuStats)>,
    /// Failure that ends the sampling of the GPU, if any.
    pub failure: Option<Failure>,
}

impl Library {
    pub(in crate::gpu) fn new(path: Option<PathBuf>) -> Self {
        Self { path, open: Mutex::default() }
    }

    /// Opens the library, or returns the current session.
    pub(in crate::gpu) fn open(&self) -> Result<Arc<Session>, Failure> {
        let mut open = self.open.lock();
        if let Some(session) = open.upgrade() {
            return Ok(session);
        }
        let path = self.path.as_deref().unwrap_or(Path::new(DEFAULT_LIBRARY));
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init().map_err(|error| open_failure(path, error))?;
        let driver_version = nvml.sys_driver_version().ok();
        let session = Arc::new(Session { nvml, driver_version });
        *open = Arc::downgrade(&session);
        Ok(session)
    }

    /// Current session. `None` if the library is not open.
    pub(in crate::gpu) fn current_session(&self) -> Option<Arc<Session>> {
        let open = self.open.lock();
        open.upgrade()
    }

    /// Returns true if the session is the current one.
    pub(in crate::gpu) fn is_open(&self, session: &Arc<Session>) -> bool {
        let open = self.open.lock();
        std::ptr::eq(open.as_ptr(), Arc::as_ptr(session))
    }

    /// Ends the session for future users, even while a call in the session hangs.
    pub(in crate::gpu) fn discard(&self, session: &Arc<Session>) {
        let mut open = self.open.lock();
        if std::ptr::eq(open.as_ptr(), Arc::as_ptr(session)) {
            *open = Weak::new();
        }
    }
}

impl Session {
    /// Number of GPUs, including those without permission.
    pub(in crate::gpu) fn count(&self) -> Result<u32, Failure> {
        self.nvml.device_count().map_err(Failure::from)
    }

    /// UUID of the GPU with the index. `None` if NVML returns an error.
    pub(in crate::gpu) fn uuid_at(&self, index: u32) -> Option<String> {
        let device = self.nvml.device_by_index(index);
        device.and_then(|device| device.uuid()).ok()
    }

    /// Returns true if NVML says that the GPU does not exist. Other errors prove nothing.
    pub(in crate::gpu) fn is_missing(&self, uuid: &str) -> bool {
        let error = self.nvml.device_by_uuid(uuid).err();
        error.is_some_and(|error| FailureKind::from(&error) == FailureKind::Lost)
    }

    /// Finds a GPU. `host` becomes part of its facts. `plan` creates the call plan of the GPU and
    /// of each instance.
    pub(in crate::gpu) fn gpu(
        &self,
        selector: &GpuSelector,
        host: &str,
        plan: impl Fn() -> CallPlan + 'static,
    ) -> Result<Gpu<'_>, Failure> {
        let lookup = match selector {
            GpuSelector::Index(index) => self.nvml.device_by_index(*index),
            GpuSelector::Uuid(uuid) => self.nvml.device_by_uuid(uuid.clone()),
        };
        let device = lookup.map_err(|error| {
            let failure = Failure::from(error);
            // A known GPU that is not found is lost, whatever the error code.
            let reason = match failure.kind {
                FailureKind::Lost => AbsentReason::GpuLost,
                FailureKind::ResetRequired | FailureKind::Driver | FailureKind::Other => failure.reason,
            };
            Failure { reason, ..failure }
        })?;
        let gpu = pb::Gpu {
            uuid: device.uuid()?,
            host: host.into(),
            gpu_index: device.index().ok().and_then(|index| i32::try_from(index).ok()),
            name: device.name().ok(),
            pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
            driver_version: self.driver_version.clone(),
            ..Default::default()
        };
        let max_link = device.max_pcie_link_gen().ok().zip(device.max_pcie_link_width().ok());
        let whole = Card::new(device, gpu, max_link, plan());
        Ok(Gpu { whole, instances: Vec::new(), instances_listed: None, plan: Box::new(plan) })
    }
}

impl Gpu<'_> {
    /// Facts about the GPU.
    pub(in crate::gpu) fn identity(&self) -> &Arc<pb::Gpu> {
        &self.whole.gpu
    }

    /// Requests a new list of the MIG instances with the next sample.
    pub(in crate::gpu) fn request_instance_list(&mut self) {
        self.instances_listed = None;
    }

    /// Makes the calls that are due, and adds their cost to `costs`.
    pub(in crate::gpu) fn sample(&mut self, costs: &Costs) -> Samples {
        self.whole.begin_sample();
        self.whole.failure = None;
        let mig_mode = self.whole.query("mig_mode", |device| device.mig_mode().map(|mode| mode.current == 1));
        if let Ok(mig) = mig_mode
            && mig != self.whole.mig
        {
            self.whole.mig = mig;
            self.whole.permanent_failures.clear();
            self.whole.constants.clear();
            self.instances_listed = None;
        }
        if self.instances_listed.is_none_or(|listed| listed.elapsed() >= INSTANCE_LIST_INTERVAL) {
            self.list_instances();
        }
        let parts = u32::try_from(1 + self.instances.len()).unwrap_or(u32::MAX);
        self.whole.plan.set_parts(parts);
        let mut stats = vec![(self.whole.gpu.clone(), self.whole.sample())];
        for instance in &mut self.instances {
            instance.begin_sample();
            instance.plan.set_parts(parts);
            instance.failure.clone_from(&self.whole.failure);
            stats.push((instance.gpu.clone(), instance.sample()));
            // The instance may have been deleted; the GPU itself still works.
            if instance.failure.is_some() {
                self.instances_listed = None;
            }
        }
        for card in std::iter::once(&mut self.whole).chain(&mut self.instances) {
            costs.add(&card.gpu.uuid, card.plan.take_costs());
        }
        Samples { stats, failure: self.whole.failure.clone() }
    }

    fn list_instances(&mut self) {
        self.instances_listed = Some(Instant::now());
        let mut known = std::mem::take(&mut self.instances);
        if !self.whole.mig {
            return;
        }
        // The upper bound of instances; most indexes are empty.
        let max_instances = self.whole.device.mig_device_count().unwrap_or(0);
        for index in 0..max_instances {
            let Ok(device) = self.whole.device.mig_device_by_index(index) else {
                continue;
            };
            let Ok(uuid) = device.uuid() else { continue };
            if let Some(position) = known.iter().position(|card| card.gpu.uuid == uuid && card.failure.is_none()) {
                self.instances.push(known.swap_remove(position));
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
