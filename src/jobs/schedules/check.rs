//! Validation of schedules and application of updates.

use prost::Message;
use serde_json::Value as Json;

use crate::{
    entity::job_schedule::{MissedPolicy, Model},
    error::Result,
    pb,
    rpc::{
        check,
        enums::{FromProto, proto_enum},
        json,
        mask::UpdateMask,
        work,
    },
};

/// Fields that an update may change.
pub(super) const UPDATABLE: [&str; 12] = [
    "name",
    "description",
    "enabled",
    "cron",
    "time_zone",
    "missed_policy",
    "job_type",
    "queue_name",
    "priority",
    "max_attempts",
    "payload",
    "skip_if_active",
];

impl pb::JobSchedule {
    /// Applies the fields of `changes` covered by the mask, except the payload.
    pub(super) fn with_changes(mut self, changes: Self, mask: &UpdateMask) -> Self {
        macro_rules! change {
            ($field:ident, $is_set:expr) => {
                if mask.covers(stringify!($field), $is_set(&changes.$field)) {
                    self.$field = changes.$field;
                }
            };
        }
        let is_text = |text: &String| !text.is_empty();
        change!(name, is_text);
        change!(description, Option::is_some);
        change!(enabled, Option::is_some);
        change!(cron, is_text);
        change!(time_zone, is_text);
        change!(missed_policy, |policy: &i32| *policy != 0);
        change!(job_type, is_text);
        change!(queue_name, is_text);
        change!(priority, Option::is_some);
        change!(max_attempts, Option::is_some);
        change!(skip_if_active, |skip: &bool| *skip);
        self
    }

    /// Takes and validates the payload. Large payloads are converted on a thread of their own.
    pub(super) async fn take_payload(&mut self) -> Result<Option<Json>> {
        let Some(payload) = self.payload.take() else {
            return Ok(None);
        };
        let payload = work::run_by_size(payload.encoded_len(), || {
            json::from_proto("job_schedule.payload", payload, json::MAX_BYTES)
        });
        payload.await.map(Some)
    }

    /// Validates the fields into a copy of `row`, except the payload. Absent fields get their defaults. The caller
    /// checks `cron` and `time_zone`.
    pub(super) fn into_row(self, row: &Model) -> Result<Model> {
        let field = |name: &str| format!("job_schedule.{name}");
        let text_or = |text: &str, default: &str| match text {
            "" => default.to_string(),
            text => text.to_string(),
        };
        let description = self.description.as_deref();
        let missed_policy = MissedPolicy::from_proto(&field("missed_policy"), self.missed_policy)?;
        let queue_name = text_or(&self.queue_name, "default");
        let priority = |value| check::within(&field("priority"), value, 0..=4);
        let attempts = |value| check::within(&field("max_attempts"), value, 1..=1_000);
        Ok(Model {
            name: check::name(&field("name"), &self.name, 1..=100)?,
            description: check::optional_text(&field("description"), description, 0..=1_000)?,
            enabled: self.enabled.unwrap_or(true),
            cron: check::name(&field("cron"), &self.cron, 1..=200)?,
            time_zone: check::name(&field("time_zone"), &text_or(&self.time_zone, "UTC"), 1..=64)?,
            missed_policy: missed_policy.unwrap_or(MissedPolicy::RunOnce),
            job_type: check::name(&field("job_type"), &self.job_type, 1..=50)?,
            queue_name: check::name(&field("queue_name"), &queue_name, 1..=100)?,
            priority: self.priority.map(priority).transpose()?,
            max_attempts: self.max_attempts.map(attempts).transpose()?,
            payload: row.payload.clone(),
            skip_if_active: self.skip_if_active,
            ..*row
        })
    }
}

proto_enum!(MissedPolicy, pb::MissedPolicy { Skip, RunOnce, RunAll });
