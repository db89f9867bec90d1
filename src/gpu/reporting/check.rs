//! The bounds of what is reported.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    entity::{
        gpu,
        gpu_event::{self, GpuEventKind, GpuEventSource},
    },
    error::{Error, Result},
    gpu::{columns, live::Condition, store::claims::Wanted},
    pb::{self, AbsentReason},
    rpc::{check, enums::FromProto, time},
};

/// How many samples, or GPUs that it says the condition of, a batch may have.
const MOST: usize = 1_000;

/// How many events it may have: each costs a statement.
pub(crate) const MOST_EVENTS: usize = 100;

/// How long what is said of an event may be, in characters.
const LONGEST_DETAIL: usize = 4_000;

/// How many events one may stand for.
const MOST_OCCURRENCES: i64 = 1_000_000_000;

/// How far the clock of a reporter may be ahead of ours.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

/// How many samples one batch may say were dropped before it.
const MOST_LOST: i64 = 1_000_000_000;

/// In degrees Celsius.
const TEMPERATURES: RangeInclusive<f64> = -273.15..=1_000.0;

/// Who reports on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reporter {
    pub id: String,
    pub host: String,
}

/// A batch whose every field is within its bounds.
#[derive(Debug)]
pub(crate) struct Batch {
    pub sequence: i64,
    pub lost: i64,
    pub driver_version: Option<String>,
    pub gpu_stats: Vec<pb::GpuStats>,
    /// Without ids.
    pub events: Vec<gpu_event::Model>,
    /// By UUID.
    pub conditions: Vec<(String, Condition)>,
}

impl Reporter {
    /// Who the first batch of a stream says it is from.
    pub(crate) fn parse(request: &pb::RecordGpuStatsRequest) -> Result<Self> {
        Ok(Self {
            id: check::id("reporter_id", &request.reporter_id)?,
            host: check::name("host", &request.host, 1..=255)?,
        })
    }

    /// Refuses a batch that says it is from somebody else.
    pub(crate) fn is_same(&self, request: &pb::RecordGpuStatsRequest) -> Result<()> {
        for (field, said, known) in [
            ("reporter_id", &request.reporter_id, &self.id),
            ("host", &request.host, &self.host),
        ] {
            if !said.is_empty() && said != known {
                let problem = "must be that of the first batch of the stream";
                return Err(Error::invalid(field, problem));
            }
        }
        Ok(())
    }
}

impl Batch {
    pub(crate) fn parse(
        request: pb::RecordGpuStatsRequest,
        host: &str,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        let sequence = request.sequence;
        if sequence < 1 {
            return Err(Error::invalid("sequence", "must be a positive number"));
        }
        let lost = check::within("lost", request.lost, 0..=MOST_LOST)?;
        let driver_version = request.driver_version.as_deref();
        let driver_version = check::optional_text("driver_version", driver_version, 1..=80)?;
        for (field, length, most) in [
            ("gpu_stats", request.gpu_stats.len(), MOST),
            ("gpu_events", request.gpu_events.len(), MOST_EVENTS),
            ("gpu_conditions", request.gpu_conditions.len(), MOST),
        ] {
            if length > most {
                let problem = format!("must have at most {most} entries");
                return Err(Error::invalid(field, problem));
            }
        }
        let sample = |(at, stats)| sample(&format!("gpu_stats[{at}]"), stats, host, now);
        let gpu_stats = request.gpu_stats.into_iter().enumerate().map(sample);
        let event = |(at, event)| self::event(&format!("gpu_events[{at}]"), event, host, now);
        let events = request.gpu_events.into_iter().enumerate().map(event);
        let condition = |(at, known)| condition(&format!("gpu_conditions[{at}]"), known);
        let conditions = request.gpu_conditions.iter().enumerate().map(condition);
        Ok(Self {
            sequence,
            lost,
            driver_version,
            gpu_stats: gpu_stats.collect::<Result<_>>()?,
            events: events.collect::<Result<_>>()?,
            conditions: conditions.collect::<Result<_>>()?,
        })
    }
}

impl Batch {
    /// The GPUs that it tells of. `host` is the one that reports.
    pub(crate) fn wanted(&self, host: &str) -> Wanted {
        let conditions = self.conditions.iter();
        let conditions = conditions.map(|(uuid, _)| (uuid.clone(), host.to_string()));
        let samples = self.gpu_stats.iter().map(|stats| {
            let host = stats.host.as_deref().unwrap_or(host);
            (stats.gpu_uuid().to_string(), host.to_string())
        });
        conditions.chain(samples).collect()
    }

    /// The field that names this GPU first.
    pub(crate) fn field_of(&self, uuid: &str) -> String {
        let sample = self
            .gpu_stats
            .iter()
            .position(|stats| stats.gpu_uuid() == uuid);
        if let Some(at) = sample {
            return format!("gpu_stats[{at}].gpu_uuid");
        }
        let mut conditions = self.conditions.iter();
        let at = conditions.position(|(known, _)| known == uuid);
        format!("gpu_conditions[{}].gpu_uuid", at.unwrap_or_default())
    }
}

/// When something was, in the past or a little ahead.
fn past(
    field: &str,
    at: Option<prost_types::Timestamp>,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>> {
    let at = at.ok_or_else(|| Error::invalid(field, "is required"))?;
    let at = time::from_proto(field, at)?;
    if at > now + AHEAD {
        let problem = "must not be more than 5 minutes ahead of the server's clock";
        return Err(Error::invalid(field, problem));
    }
    Ok(at)
}

/// An event that can be stored.
fn event(
    path: &str,
    event: pb::GpuEvent,
    host: &str,
    now: DateTime<Utc>,
) -> Result<gpu_event::Model> {
    let at = |field: &str| format!("{path}.{field}");
    if event.id != 0 {
        let problem = "must be 0: the server numbers events";
        return Err(Error::invalid(at("id"), problem));
    }
    let required = |field: &str| Error::invalid(at(field), "is required");
    let name = |field: &str, value: Option<String>, most: usize| {
        let name = |value: String| check::name(&at(field), &value, 1..=most);
        value.map(name).transpose()
    };
    let number = |field: &str, value: Option<i64>| {
        let number = |value| check::within(&at(field), value, 0..=i64::MAX);
        value.map(number).transpose()
    };
    let index = |value| check::within(&at("gpu_index"), value, 0..=i32::MAX);
    let occurrences = check::within(&at("occurrences"), event.occurrences, 0..=MOST_OCCURRENCES)?;
    Ok(gpu_event::Model {
        id: 0,
        occurred_at: past(&at("occurred_at"), event.occurred_at, now)?,
        host: if event.host.is_empty() {
            host.to_string()
        } else {
            check::name(&at("host"), &event.host, 1..=255)?
        },
        gpu_uuid: name("gpu_uuid", event.gpu_uuid, 96)?,
        gpu_index: event.gpu_index.map(index).transpose()?,
        gpu_name: name("gpu_name", event.gpu_name, 255)?,
        pci_bus_id: name("pci_bus_id", event.pci_bus_id, 32)?,
        mig_parent_uuid: name("mig_parent_uuid", event.mig_parent_uuid, 96)?,
        kind: GpuEventKind::from_proto(&at("kind"), event.kind)?.ok_or_else(|| required("kind"))?,
        code: number("code", event.code)?,
        detail: check::optional_text(&at("detail"), event.detail.as_deref(), 1..=LONGEST_DETAIL)?,
        source: GpuEventSource::from_proto(&at("source"), event.source)?
            .ok_or_else(|| required("source"))?,
        occurrences: occurrences.max(1),
    })
}

/// How a GPU is said to be.
fn condition(path: &str, known: &pb::GpuCondition) -> Result<(String, Condition)> {
    let at = |field: &str| format!("{path}.{field}");
    let uuid = check::name(&at("gpu_uuid"), &known.gpu_uuid, 1..=96)?;
    let state = gpu::GpuState::from_proto(&at("state"), known.state)?
        .ok_or_else(|| Error::invalid(at("state"), "is required"))?;
    let pressure = |value| {
        let level = gpu::MemoryPressure::from_proto(&at("memory_pressure"), value)?;
        level.ok_or_else(|| Error::invalid(at("memory_pressure"), "must not be unspecified"))
    };
    let pressure = known.memory_pressure.map(pressure).transpose()?;
    let condition = Condition {
        state: state.into(),
        memory_pressure: pressure.map(Into::into),
    };
    Ok((uuid, condition))
}

/// A sample that can be stored, with what it has left out.
fn sample(
    path: &str,
    mut stats: pb::GpuStats,
    host: &str,
    now: DateTime<Utc>,
) -> Result<pb::GpuStats> {
    check_values(path, &stats)?;
    let at = past(&format!("{path}.recorded_at"), stats.recorded_at, now)?;
    // As it will be read back.
    stats.recorded_at = Some(time::to_proto(at));
    stats.host.get_or_insert_with(|| host.to_string());
    complete_reasons(path, &mut stats)?;
    drop_negative_zeros(&mut stats);
    Ok(stats)
}

/// Makes negative zero zero, since SQLite does not keep its sign and PostgreSQL does.
fn drop_negative_zeros(stats: &mut pb::GpuStats) {
    let values = [
        &mut stats.gpu_utilization,
        &mut stats.memory_bandwidth_utilization,
        &mut stats.temperature,
        &mut stats.temp_slowdown_threshold,
        &mut stats.memory_temperature,
        &mut stats.power_usage,
        &mut stats.power_usage_instant,
        &mut stats.power_limit,
        &mut stats.inference_fps,
    ];
    for value in values.into_iter().flatten() {
        *value += 0.0;
    }
}

/// Every field is named, so that a new one cannot be forgotten.
fn check_values(path: &str, stats: &pb::GpuStats) -> Result<()> {
    let pb::GpuStats {
        id,
        recorded_at: _,
        gpu_name,
        gpu_utilization,
        memory_used,
        memory_total,
        temperature,
        power_usage,
        inference_fps,
        fan_speed,
        sm_clock,
        memory_bandwidth_utilization,
        pstate,
        // A bit mask of the driver, whatever it says.
        throttle_reasons: _,
        power_limit,
        sm_clock_max,
        compute_processes_count,
        pcie_replay_counter,
        temp_slowdown_threshold,
        memory_clock,
        memory_clock_max,
        pcie_link_gen,
        pcie_link_width,
        pcie_tx_throughput,
        pcie_rx_throughput,
        encoder_utilization,
        decoder_utilization,
        bar1_used,
        gpu_uuid,
        gpu_index,
        host,
        pci_bus_id,
        mig_parent_uuid,
        absent_reasons: _,
        energy_consumption,
        power_usage_instant,
        memory_temperature,
        // Says nothing but whether it is the same.
        counter_epoch: _,
    } = stats;
    let at = |field: &str| format!("{path}.{field}");
    if id.is_some() {
        let problem = "must be absent: the server numbers samples";
        return Err(Error::invalid(at("id"), problem));
    }
    let uuid = gpu_uuid.as_deref().unwrap_or_default();
    check::name(&at("gpu_uuid"), uuid, 1..=96)?;
    macro_rules! each {
        ($($field:ident),+: $check:expr) => {$(
            if let Some(value) = $field {
                $check(&at(stringify!($field)), value)?;
            }
        )+};
    }
    let text = |most| move |field: &str, value: &String| check::name(field, value, 1..=most);
    each!(gpu_name, host: text(255));
    each!(pci_bus_id: text(32));
    each!(mig_parent_uuid: text(96));
    each!(gpu_utilization, memory_bandwidth_utilization:
        |field: &str, value: &f64| check::within(field, *value, 0.0..=100.0));
    each!(encoder_utilization, decoder_utilization:
        |field: &str, value: &i32| check::within(field, *value, 0..=100));
    each!(temperature, temp_slowdown_threshold, memory_temperature:
        |field: &str, value: &f64| check::within(field, *value, TEMPERATURES));
    each!(power_usage, power_usage_instant, power_limit, inference_fps:
        |field: &str, value: &f64| check::at_least(field, *value, 0.0));
    each!(pstate: |field: &str, value: &i32| check::within(field, *value, 0..=15));
    each!(
        fan_speed, sm_clock, sm_clock_max, compute_processes_count, memory_clock,
        memory_clock_max, pcie_link_gen, pcie_link_width, gpu_index:
        |field: &str, value: &i32| check::within(field, *value, 0..=i32::MAX)
    );
    each!(
        memory_used, memory_total, pcie_replay_counter, pcie_tx_throughput,
        pcie_rx_throughput, bar1_used, energy_consumption:
        |field: &str, value: &i64| check::within(field, *value, 0..=i64::MAX)
    );
    if let (Some(used), Some(total)) = (memory_used, memory_total)
        && used > total
    {
        let problem = "must not be more than memory_total";
        return Err(Error::invalid(at("memory_used"), problem));
    }
    Ok(())
}

/// Every absent value gets a reason, and no other has one.
fn complete_reasons(path: &str, stats: &mut pb::GpuStats) -> Result<()> {
    let absent: Vec<_> = columns::absent(stats).collect();
    for (column, reason) in &stats.absent_reasons {
        let wrong = |problem| Error::invalid(format!("{path}.absent_reasons[{column}]"), problem);
        if !absent.contains(&column.as_str()) {
            return Err(wrong("must name a value that is absent"));
        }
        match AbsentReason::try_from(*reason) {
            Ok(AbsentReason::Unspecified) => return Err(wrong("must be a reason")),
            Ok(_) => {}
            Err(_) => return Err(wrong("is not a value that this server knows")),
        }
    }
    for column in absent {
        let reasons = stats.absent_reasons.entry(column.to_string());
        reasons.or_insert(AbsentReason::NotReported.into());
    }
    Ok(())
}
