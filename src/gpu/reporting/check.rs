//! Validation of reported batches.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    entity::{
        gpu,
        gpu_event::{self, GpuEventKind, GpuEventSource},
    },
    error::{Error, Result},
    gpu::{columns, condition::Condition, store::claims::ClaimRequest},
    pb::{self, AbsentReason},
    rpc::{check, enums::FromProto, time},
};

/// Upper bound of samples, and of conditions, in a batch.
const MAX_SAMPLES: usize = 1_000;

/// Upper bound of events in a batch, because each event costs a statement.
pub(crate) const MAX_EVENTS: usize = 100;

/// Upper bound of the detail of an event, in characters.
const MAX_DETAIL_CHARS: usize = 4_000;

/// Upper bound of the occurrences of an event.
const MAX_OCCURRENCES: i64 = 1_000_000_000;

/// Time by which a reporter's clock may be ahead of the server's clock.
const MAX_CLOCK_LEAD: TimeDelta = TimeDelta::minutes(5);

/// Upper bound of the samples that a batch reports as lost.
const MAX_LOST: i64 = 1_000_000_000;

/// Allowed temperatures in °C.
const CELSIUS_RANGE: RangeInclusive<f64> = -273.15..=1_000.0;

/// Reporter on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reporter {
    pub id: String,
    pub host: String,
}

/// Validated batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub sequence: i64,
    pub lost: i64,
    pub driver_version: Option<String>,
    pub gpu_stats: Vec<pb::GpuStats>,
    /// Events without ids.
    pub events: Vec<gpu_event::Model>,
    /// Conditions by UUID of the GPU.
    pub conditions: Vec<(String, Condition)>,
}

impl Reporter {
    /// Reporter named by the first batch of a stream.
    pub(crate) fn parse(request: &pb::RecordGpuStatsRequest) -> Result<Self> {
        Ok(Self {
            id: check::id("reporter_id", &request.reporter_id)?,
            host: check::name("host", &request.host, 1..=255)?,
        })
    }

    /// Fails if the batch names another reporter.
    pub(crate) fn check_same(&self, request: &pb::RecordGpuStatsRequest) -> Result<()> {
        for (field, given, known) in
            [("reporter_id", &request.reporter_id, &self.id), ("host", &request.host, &self.host)]
        {
            if !given.is_empty() && given != known {
                let problem = "must be that of the first batch of the stream";
                return Err(Error::invalid(field, problem));
            }
        }
        Ok(())
    }
}

impl Batch {
    pub(crate) fn parse(request: pb::RecordGpuStatsRequest, host: &str, now: DateTime<Utc>) -> Result<Self> {
        let sequence = request.sequence;
        if sequence < 1 {
            return Err(Error::invalid("sequence", "must be a positive number"));
        }
        let lost = check::within("lost", request.lost, 0..=MAX_LOST)?;
        let given_version = request.driver_version.as_deref();
        let driver_version = check::optional_text("driver_version", given_version, 1..=80)?;
        for (field, length, max) in [
            ("gpu_stats", request.gpu_stats.len(), MAX_SAMPLES),
            ("gpu_events", request.gpu_events.len(), MAX_EVENTS),
            ("gpu_conditions", request.gpu_conditions.len(), MAX_SAMPLES),
        ] {
            if length > max {
                let problem = format!("must have at most {max} entries");
                return Err(Error::invalid(field, problem));
            }
        }
        let sample = |(index, stats)| sample(&format!("gpu_stats[{index}]"), stats, host, now);
        let gpu_stats = request.gpu_stats.into_iter().enumerate().map(sample);
        let event = |(index, event)| self::event(&format!("gpu_events[{index}]"), event, host, now);
        let events = request.gpu_events.into_iter().enumerate().map(event);
        let condition = |(index, known)| condition(&format!("gpu_conditions[{index}]"), known);
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

    /// Claims on all GPUs of the batch. `host` is the host of the reporter.
    pub(crate) fn claim_request(&self, host: &str) -> ClaimRequest {
        let conditions = self.conditions.iter().map(|(uuid, _)| (uuid.clone(), host.to_string()));
        let samples = self.gpu_stats.iter().map(|stats| {
            let host = stats.host.as_deref().unwrap_or(host);
            (stats.gpu_uuid().to_string(), host.to_string())
        });
        conditions.chain(samples).collect()
    }

    /// Path of the first field that names the GPU.
    pub(crate) fn field_of(&self, uuid: &str) -> String {
        let sample = self.gpu_stats.iter().position(|stats| stats.gpu_uuid() == uuid);
        if let Some(index) = sample {
            return format!("gpu_stats[{index}].gpu_uuid");
        }
        let mut conditions = self.conditions.iter();
        let index = conditions.position(|(known, _)| known == uuid);
        format!("gpu_conditions[{}].gpu_uuid", index.unwrap_or_default())
    }
}

/// Time that is at most [`MAX_CLOCK_LEAD`] in the future.
fn parse_past_time(field: &str, time: Option<prost_types::Timestamp>, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let timestamp = time.ok_or_else(|| Error::invalid(field, "is required"))?;
    let time = time::from_proto(field, timestamp)?;
    if time > now + MAX_CLOCK_LEAD {
        let problem = "must not be more than 5 minutes ahead of the server's clock";
        return Err(Error::invalid(field, problem));
    }
    Ok(time)
}

/// Row of a valid event.
fn event(path: &str, event: pb::GpuEvent, host: &str, now: DateTime<Utc>) -> Result<gpu_event::Model> {
    let field_path = |field: &str| format!("{path}.{field}");
    if event.id != 0 {
        let problem = "must be 0: the server numbers events";
        return Err(Error::invalid(field_path("id"), problem));
    }
    let required = |field: &str| Error::invalid(field_path(field), "is required");
    let name = |field: &str, value: Option<String>, max: usize| {
        let name = |value: String| check::name(&field_path(field), &value, 1..=max);
        value.map(name).transpose()
    };
    let number = |field: &str, value: Option<i64>| {
        let number = |value| check::within(&field_path(field), value, 0..=i64::MAX);
        value.map(number).transpose()
    };
    let index = |value| check::within(&field_path("gpu_index"), value, 0..=i32::MAX);
    let occurrences = check::within(&field_path("occurrences"), event.occurrences, 0..=MAX_OCCURRENCES)?;
    Ok(gpu_event::Model {
        id: 0,
        occurred_at: parse_past_time(&field_path("occurred_at"), event.occurred_at, now)?,
        host: if event.host.is_empty() {
            host.to_string()
        } else {
            check::name(&field_path("host"), &event.host, 1..=255)?
        },
        gpu_uuid: name("gpu_uuid", event.gpu_uuid, 96)?,
        gpu_index: event.gpu_index.map(index).transpose()?,
        gpu_name: name("gpu_name", event.gpu_name, 255)?,
        pci_bus_id: name("pci_bus_id", event.pci_bus_id, 32)?,
        mig_parent_uuid: name("mig_parent_uuid", event.mig_parent_uuid, 96)?,
        kind: GpuEventKind::from_proto(&field_path("kind"), event.kind)?.ok_or_else(|| required("kind"))?,
        code: number("code", event.code)?,
        detail: check::optional_text(&field_path("detail"), event.detail.as_deref(), 1..=MAX_DETAIL_CHARS)?,
        source: GpuEventSource::from_proto(&field_path("source"), event.source)?.ok_or_else(|| required("source"))?,
        occurrences: occurrences.max(1),
    })
}

/// Valid condition, with the UUID of its GPU.
fn condition(path: &str, known: &pb::GpuCondition) -> Result<(String, Condition)> {
    let field_path = |field: &str| format!("{path}.{field}");
    let uuid = check::name(&field_path("gpu_uuid"), &known.gpu_uuid, 1..=96)?;
    let state = gpu::GpuState::from_proto(&field_path("state"), known.state)?
        .ok_or_else(|| Error::invalid(field_path("state"), "is required"))?;
    let pressure = |value| {
        let level = gpu::MemoryPressure::from_proto(&field_path("memory_pressure"), value)?;
        level.ok_or_else(|| Error::invalid(field_path("memory_pressure"), "must not be unspecified"))
    };
    let memory_pressure = known.memory_pressure.map(pressure).transpose()?;
    let condition = Condition { state: state.into(), memory_pressure: memory_pressure.map(Into::into) };
    Ok((uuid, condition))
}

/// Valid sample, completed with the host and the reasons for absent values.
fn sample(path: &str, mut stats: pb::GpuStats, host: &str, now: DateTime<Utc>) -> Result<pb::GpuStats> {
    check_values(path, &stats)?;
    let recorded_at = parse_past_time(&format!("{path}.recorded_at"), stats.recorded_at, now)?;
    // The same precision as a sample that is read from the database.
    stats.recorded_at = Some(time::to_proto(recorded_at));
    stats.host.get_or_insert_with(|| host.to_string());
    complete_reasons(path, &mut stats)?;
    drop_negative_zeros(&mut stats);
    Ok(stats)
}

/// Replaces negative zero by zero, because PostgreSQL keeps the sign and SQLite does not.
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

/// Checks the range of every value. All fields are listed, so that the compiler reports a new one.
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
        // Any mask of the driver is valid.
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
        // Any epoch is valid, because epochs are only compared.
        counter_epoch: _,
    } = stats;
    let field_path = |field: &str| format!("{path}.{field}");
    if id.is_some() {
        let problem = "must be absent: the server numbers samples";
        return Err(Error::invalid(field_path("id"), problem));
    }
    let uuid = gpu_uuid.as_deref().unwrap_or_default();
    check::name(&field_path("gpu_uuid"), uuid, 1..=96)?;
    macro_rules! each {
        ($($field:ident),+: $check:expr) => {$(
            if let Some(value) = $field {
                $check(&field_path(stringify!($field)), value)?;
            }
        )+};
    }
    let text = |max| move |field: &str, value: &String| check::name(field, value, 1..=max);
    each!(gpu_name, host: text(255));
    each!(pci_bus_id: text(32));
    each!(mig_parent_uuid: text(96));
    each!(gpu_utilization, memory_bandwidth_utilization:
        |field: &str, value: &f64| check::within(field, *value, 0.0..=100.0));
    each!(encoder_utilization, decoder_utilization:
        |field: &str, value: &i32| check::within(field, *value, 0..=100));
    each!(temperature, temp_slowdown_threshold, memory_temperature:
        |field: &str, value: &f64| check::within(field, *value, CELSIUS_RANGE));
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
        return Err(Error::invalid(field_path("memory_used"), problem));
    }
    Ok(())
}

/// Adds the reason "not reported" to absent values without a reason. Fails if a present value has a
/// reason.
fn complete_reasons(path: &str, stats: &mut pb::GpuStats) -> Result<()> {
    let absent: Vec<_> = columns::absent_columns(stats).collect();
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
