//! Metrics of the GPUs of this host and of reporting hosts, with the names, units and labels of
//! DCGM and its exporter.
//!
//! A value that was not measured has no series; `watchpost_gpu_value_unavailable` gives the reason.
//! A GPU without recent samples has no values, because an old value would pass for a current one.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::proto::MetricType::{self, COUNTER, GAUGE};
use sea_orm::{ActiveEnum, Iterable};

use super::family::{Families, Labels, count};
use crate::{
    entity::gpu_event::GpuEventKind,
    gpu::{self, Cost, Costs, LiveGpus, Origin, Reading},
    pb::{AbsentReason, GpuStats},
};

/// Number of intervals without a sample after which a GPU counts as gone.
const MAX_MISSED_INTERVALS: i32 = 3;

/// Minimum age at which a GPU counts as gone, because a round of calls into a busy driver may take
/// this long.
const MIN_FRESHNESS: Duration = Duration::from_secs(10);

/// Column of a sample with its metric.
struct Column {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&GpuStats) -> Option<f64>,
}

const COLUMNS: [Column; 25] = [
    column("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", |stats| stats.sm_clock.map(f64::from)),
    column("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", |stats| stats.memory_clock.map(f64::from)),
    column("DCGM_FI_DEV_MAX_SM_CLOCK", "Maximum SM clock frequency (in MHz).", |stats| {
        stats.sm_clock_max.map(f64::from)
    }),
    column("DCGM_FI_DEV_MAX_MEM_CLOCK", "Maximum memory clock frequency (in MHz).", |stats| {
        stats.memory_clock_max.map(f64::from)
    }),
    column("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "Clock throttle reasons, as a bit mask.", |stats| {
        gpu::throttle::mask(stats).map(count)
    }),
    column("DCGM_FI_DEV_PSTATE", "Performance state, from 0 (fastest) to 15.", |stats| stats.pstate.map(f64::from)),
    column("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", |stats| stats.temperature),
    column("DCGM_FI_DEV_MEMORY_TEMP", "Memory temperature (in C).", |stats| stats.memory_temperature),
    column("DCGM_FI_DEV_SLOWDOWN_TEMP", "Temperature at which clocks are throttled (in C).", |stats| {
        stats.temp_slowdown_threshold
    }),
    column("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", |stats| stats.power_usage),
    column("DCGM_FI_DEV_POWER_USAGE_INSTANT", "Current power draw (in W).", |stats| stats.power_usage_instant),
    Column {
        kind: COUNTER,
        ..column("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Energy drawn since the driver was loaded (in mJ).", |stats| {
            whole(stats.energy_consumption)
        })
    },
    column("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "The power limit in force (in W).", |stats| stats.power_limit),
    column("DCGM_FI_DEV_FAN_SPEED", "Intended speed of the fastest fan (in %).", |stats| {
        stats.fan_speed.map(f64::from)
    }),
    column("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", |stats| stats.gpu_utilization),
    column("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization: share of time with memory access (in %).", |stats| {
        stats.memory_bandwidth_utilization
    }),
    column("DCGM_FI_DEV_ENC_UTIL", "Encoder utilization (in %).", |stats| stats.encoder_utilization.map(f64::from)),
    column("DCGM_FI_DEV_DEC_UTIL", "Decoder utilization (in %).", |stats| stats.decoder_utilization.map(f64::from)),
    column("DCGM_FI_DEV_FB_TOTAL", "Framebuffer memory (in MiB).", |stats| whole(stats.memory_total)),
    column("DCGM_FI_DEV_FB_USED", "Framebuffer memory used, without the driver's reserve (in MiB).", |stats| {
        whole(stats.memory_used)
    }),
    column("DCGM_FI_DEV_FB_FREE", "Framebuffer memory not used: the total less what is used (in MiB).", |stats| {
        whole(stats.memory_total.zip(stats.memory_used).map(|(total, used)| total - used))
    }),
    column("DCGM_FI_DEV_BAR1_USED", "BAR1 memory used (in MiB).", |stats| whole(stats.bar1_used)),
    column("DCGM_FI_DEV_PCIE_LINK_GEN", "Current PCIe generation.", |stats| stats.pcie_link_gen.map(f64::from)),
    column("DCGM_FI_DEV_PCIE_LINK_WIDTH", "Current number of PCIe lanes.", |stats| {
        stats.pcie_link_width.map(f64::from)
    }),
    Column {
        kind: COUNTER,
        ..column("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "PCIe replays: retransmitted packets.", |stats| {
            whole(stats.pcie_replay_counter)
        })
    },
];

/// Columns without a name of the same meaning in DCGM.
const OWN_COLUMNS: [Column; 4] = [
    column(
        "watchpost_gpu_pcie_sent_bytes_per_second",
        "PCIe throughput sent by the GPU since the sample before, in bytes per second.",
        |stats| whole(stats.pcie_tx_throughput).map(|kilobytes| kilobytes * 1000.0),
    ),
    column(
        "watchpost_gpu_pcie_received_bytes_per_second",
        "PCIe throughput received by the GPU since the sample before, in bytes per second.",
        |stats| whole(stats.pcie_rx_throughput).map(|kilobytes| kilobytes * 1000.0),
    ),
    column("watchpost_gpu_compute_processes", "Processes with a compute context.", |stats| {
        stats.compute_processes_count.map(f64::from)
    }),
    column("watchpost_gpu_inferences_per_second", "Inferences per second, as the pipeline reports them.", |stats| {
        stats.inference_fps
    }),
];

const fn column(name: &'static str, help: &'static str, value: fn(&GpuStats) -> Option<f64>) -> Column {
    Column { name, help, kind: GAUGE, value }
}

fn whole(value: Option<i64>) -> Option<f64> {
    value.and_then(|value| u64::try_from(value).ok()).map(count)
}

pub(super) fn collect(families: &mut Families, gpus: &LiveGpus, interval: Duration, now: DateTime<Utc>) {
    let delta = |time| TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX);
    // The process that relays a reading exports the reading itself.
    let mut readings = gpus.readings();
    readings.retain(|reading| reading.origin != Origin::Relayed);
    let is_fresh = |reading: &Reading| {
        // Other hosts may have other intervals.
        let max_age = reading.since_previous.map(|elapsed| elapsed * MAX_MISSED_INTERVALS);
        let max_age = max_age.unwrap_or(delta(interval) * MAX_MISSED_INTERVALS);
        now - reading.taken_at <= max_age.max(delta(MIN_FRESHNESS))
    };
    let fresh: Vec<_> = readings
        .iter()
        .filter(|reading| is_fresh(reading))
        .map(|reading| (labels(gpus, &reading.stats), gpus.carried(reading)))
        .collect();
    for column in COLUMNS.iter().chain(&OWN_COLUMNS) {
        let values = fresh.iter().filter_map(|(labels, stats)| Some((labels.clone(), (column.value)(stats)?)));
        families.add(column.name, column.help, column.kind, values);
    }
    families.add(
        "watchpost_gpu_throttle_reason",
        "1 if clocks are throttled for this reason, else 0.",
        GAUGE,
        fresh.iter().flat_map(|(_, stats)| throttle_values(stats)),
    );
    let unavailable = fresh.iter().flat_map(|(_, stats)| absence_labels(stats));
    families.add(
        "watchpost_gpu_value_unavailable",
        "Absent value of the last sample, with the reason; always 1.",
        GAUGE,
        unavailable.map(|labels| (labels, 1.0)),
    );
    let up = |reading: &Arc<Reading>| is_fresh(reading) && gpu::has_values(&reading.stats);
    families.add(
        "watchpost_gpu_up",
        "1 if a recent sample of the GPU has values, else 0.",
        GAUGE,
        readings.iter().map(|reading| (identity_labels(&reading.stats), if up(reading) { 1.0 } else { 0.0 })),
    );
    families.add(
        "watchpost_gpu_samples_total",
        "Samples of the GPU since the server started.",
        COUNTER,
        readings.iter().map(|reading| (identity_labels(&reading.stats), count(reading.number))),
    );
    collect_events(families, gpus, &readings);
    collect_costs(families, gpus.costs());
}

/// Adds the counts of events. Sampled GPUs export all kinds from the start, at 0, because alerting
/// tools miss the first value of a new series.
fn collect_events(families: &mut Families, gpus: &LiveGpus, readings: &[Arc<Reading>]) {
    let mut counts = gpus.event_counts().snapshot();
    let whole = readings.iter().filter(|reading| reading.stats.mig_parent_uuid.is_none());
    for reading in whole {
        for kind in GpuEventKind::iter() {
            let key = (reading.stats.gpu_uuid.clone(), kind);
            counts.entry(key).or_default();
        }
    }
    let mut sorted: Vec<_> =
        counts.into_iter().map(|((uuid, kind), stored)| (uuid.unwrap_or_default(), kind.to_value(), stored)).collect();
    sorted.sort_unstable();
    let values = sorted.into_iter().map(|(uuid, kind, stored)| (vec![("UUID", uuid), ("kind", kind)], count(stored)));
    families.add(
        "watchpost_gpu_events_total",
        "Events of the GPU since the server started, such as XID errors.",
        COUNTER,
        values,
    );
}

/// Adds the cost of driver calls.
fn collect_costs(families: &mut Families, costs: &Costs) {
    let snapshot = costs.snapshot();
    let mut family = |name, help, kind, value: fn(&Cost) -> f64| {
        let values = snapshot.iter().map(|(uuid, call, cost)| {
            let labels = vec![("UUID", uuid.clone()), ("call", (*call).to_string())];
            (labels, value(cost))
        });
        families.add(name, help, kind, values);
    };
    family("watchpost_nvml_calls_total", "Calls into NVML, by kind of call.", COUNTER, |cost| count(cost.calls));
    family("watchpost_nvml_call_seconds_total", "Total time of the calls into NVML, in seconds.", COUNTER, |cost| {
        cost.total.as_secs_f64()
    });
    family(
        "watchpost_nvml_call_longest_seconds",
        "Time of the longest call into NVML since the server started, in seconds.",
        GAUGE,
        |cost| cost.longest.as_secs_f64(),
    );
}

/// Labels that identify the GPU.
fn identity_labels(stats: &GpuStats) -> Labels {
    let index = stats.gpu_index.map(|index| index.to_string());
    vec![("gpu", index.unwrap_or_default()), ("UUID", stats.gpu_uuid.clone().unwrap_or_default())]
}

/// Labels of the exporter of DCGM. Unknown labels are left out, which equals an empty value.
fn labels(gpus: &LiveGpus, stats: &GpuStats) -> Labels {
    let name = stats.gpu_name.as_deref().unwrap_or_default();
    let (model, profile) = match name.split_once(" MIG ") {
        Some((model, profile)) if stats.mig_parent_uuid.is_some() => (model, Some(profile)),
        _ => (name, None),
    };
    let known = gpus.gpu(stats.gpu_uuid.as_deref().unwrap_or_default());
    let driver = known.and_then(|gpu| gpu.driver_version.clone());
    let device = stats.gpu_index.map(|index| format!("nvidia{index}"));
    let optional_labels = [
        ("pci_bus_id", stats.pci_bus_id.clone()),
        ("device", device),
        ("modelName", Some(model.to_string())),
        ("GPU_I_PROFILE", profile.map(Into::into)),
        ("Hostname", stats.host.clone()),
        ("DCGM_FI_DRIVER_VERSION", driver),
    ];
    let mut labels = identity_labels(stats);
    labels.extend(
        optional_labels.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?))),
    );
    labels
}

/// Value for every named reason, and for every other bit that is set.
fn throttle_values(stats: &GpuStats) -> Vec<(Labels, f64)> {
    let Some(mask) = gpu::throttle::mask(stats) else {
        return Vec::new();
    };
    let named = gpu::throttle::REASONS.map(|(bit, reason)| {
        let name = reason.as_str_name().trim_start_matches("THROTTLE_REASON_");
        (name.to_lowercase(), mask & bit != 0)
    });
    let unnamed_bits = gpu::throttle::unnamed_bits(mask);
    let unnamed = (0..u64::BITS).filter(|bit| unnamed_bits >> bit & 1 == 1).map(|bit| (format!("bit_{bit}"), true));
    let value = |(reason, holds)| {
        let mut labels = identity_labels(stats);
        labels.push(("reason", reason));
        (labels, if holds { 1.0 } else { 0.0 })
    };
    named.into_iter().chain(unnamed).map(value).collect()
}

/// Labels for every absent value, with the name of the field in the API and the reason.
fn absence_labels(stats: &GpuStats) -> Vec<Labels> {
    let mut fields: Vec<_> = stats.absent_reasons.iter().collect();
    fields.sort();
    let labels = |(field, reason): (&String, &i32)| {
        let reason = AbsentReason::try_from(*reason).unwrap_or_default();
        let mut labels = identity_labels(stats);
        labels.push(("field", field.clone()));
        labels.push(("reason", reason.label()));
        labels
    };
    fields.into_iter().map(labels).collect()
}

#[cfg(test)]
mod tests;
