//! Filter of a watch.

use std::collections::HashSet;

use crate::{
    entity::alert::{AlertSeverity, AlertStatus},
    error::{Error, Result},
    pb::{self, watch_response::Update},
    rpc::{check, enums::FromProto},
};

/// Upper bound of values in one list of a filter.
const MAX_FILTER_VALUES: usize = 1_000;

/// Filter of a watch. An empty set matches everything.
#[derive(Debug, Default)]
pub(super) struct Filter {
    topics: HashSet<pb::Topic>,
    severities: HashSet<i32>,
    statuses: HashSet<i32>,
    rule_ids: HashSet<String>,
    camera_ids: HashSet<String>,
    channels: HashSet<String>,
    gpu_uuids: HashSet<String>,
}

impl Filter {
    /// Parses and checks the filters of a request.
    pub(super) fn parse(request: &pb::WatchRequest) -> Result<Self> {
        let topic = |(index, number): (usize, &i32)| match pb::Topic::try_from(*number) {
            Ok(pb::Topic::Unspecified) => Err(Error::invalid(
                format!("topics[{index}]"),
                "must not be unspecified",
            )),
            Ok(topic) => Ok(topic),
            Err(_) => Err(Error::invalid(
                format!("topics[{index}]"),
                "is not a value that this server knows",
            )),
        };
        let topics = request
            .topics
            .iter()
            .enumerate()
            .map(topic)
            .collect::<Result<_>>()?;
        let alerts = request.alert_filter.clone().unwrap_or_default();
        AlertSeverity::all_from_proto("alert_filter.severities", &alerts.severities)?;
        AlertStatus::all_from_proto("alert_filter.statuses", &alerts.statuses)?;
        let rule_ids = check::uuids("alert_filter.rule_ids", &alerts.rule_ids)?;
        let camera_ids = check::texts(
            "alert_filter.camera_ids",
            &alerts.camera_ids,
            MAX_FILTER_VALUES,
            &(1..=64),
        )?;
        let channels = check::texts(
            "alert_filter.channels",
            &alerts.channels,
            MAX_FILTER_VALUES,
            &(1..=100),
        )?;
        let gpus = request.gpu_stats_filter.clone().unwrap_or_default();
        let gpu_uuids = check::texts(
            "gpu_stats_filter.gpu_uuids",
            &gpus.gpu_uuids,
            MAX_FILTER_VALUES,
            &(1..=96),
        )?;
        Ok(Self {
            topics,
            severities: alerts.severities.into_iter().collect(),
            statuses: alerts.statuses.into_iter().collect(),
            // Canonical form, because clients may use other letter cases.
            rule_ids: rule_ids.iter().map(ToString::to_string).collect(),
            camera_ids: camera_ids.into_iter().collect(),
            channels: channels.into_iter().collect(),
            gpu_uuids: gpu_uuids.into_iter().collect(),
        })
    }

    fn includes_topic(&self, topic: pb::Topic) -> bool {
        self.topics.is_empty() || self.topics.contains(&topic)
    }

    /// Returns true if the filter includes any topic of the change feed.
    pub(super) fn includes_changes(&self) -> bool {
        use pb::Topic::{
            AlertRules, Alerts, CameraZones, Cameras, Events, GpuEvents, JobLogs, JobQueues,
            JobSchedules, JobTypes, Jobs, NotificationChannels, Silences,
        };
        [
            Alerts,
            Events,
            Cameras,
            CameraZones,
            AlertRules,
            GpuEvents,
            NotificationChannels,
            Silences,
            Jobs,
            JobLogs,
            JobQueues,
            JobTypes,
            JobSchedules,
        ]
        .into_iter()
        .any(|topic| self.includes_topic(topic))
    }

    /// Returns true if the filter includes GPU stats.
    pub(super) fn includes_gpu_stats(&self) -> bool {
        self.includes_topic(pb::Topic::GpuStats)
    }

    /// Returns true if the filter includes the GPU.
    pub(super) fn includes_gpu(&self, uuid: &str) -> bool {
        self.gpu_uuids.is_empty() || self.gpu_uuids.contains(uuid)
    }

    /// Returns true if the filter includes the change.
    pub(super) fn matches(&self, update: Option<&Update>) -> bool {
        match update {
            Some(Update::Alert(change)) => {
                self.includes_topic(pb::Topic::Alerts)
                    && change
                        .alert
                        .as_ref()
                        .is_some_and(|alert| self.matches_alert(alert))
            }
            Some(Update::Event(_)) => self.includes_topic(pb::Topic::Events),
            Some(Update::Camera(_)) => self.includes_topic(pb::Topic::Cameras),
            Some(Update::CameraZone(_)) => self.includes_topic(pb::Topic::CameraZones),
            Some(Update::AlertRule(_)) => self.includes_topic(pb::Topic::AlertRules),
            Some(Update::NotificationChannel(_)) => {
                self.includes_topic(pb::Topic::NotificationChannels)
            }
            Some(Update::Silence(_)) => self.includes_topic(pb::Topic::Silences),
            Some(Update::JobChanges(_)) => self.includes_topic(pb::Topic::Jobs),
            Some(Update::JobLogs(_)) => self.includes_topic(pb::Topic::JobLogs),
            Some(Update::JobQueue(_)) => self.includes_topic(pb::Topic::JobQueues),
            Some(Update::JobType(_)) => self.includes_topic(pb::Topic::JobTypes),
            Some(Update::JobSchedule(_)) => self.includes_topic(pb::Topic::JobSchedules),
            Some(Update::GpuEvent(event)) => {
                self.includes_topic(pb::Topic::GpuEvents)
                    && self.includes_gpu(event.gpu_uuid.as_deref().unwrap_or_default())
            }
            Some(Update::Unreadable(change)) => {
                let name = format!("TOPIC_{}", change.topic.to_uppercase());
                self.topics.is_empty()
                    || pb::Topic::from_str_name(&name)
                        .is_some_and(|topic| self.includes_topic(topic))
            }
            Some(Update::GpuStats(_) | Update::Heartbeat(_) | Update::SnapshotEnd(_)) | None => {
                false
            }
        }
    }

    fn matches_alert(&self, alert: &pb::Alert) -> bool {
        fn allows(set: &HashSet<String>, value: Option<&String>) -> bool {
            set.is_empty() || value.is_some_and(|value| set.contains(value))
        }
        (self.severities.is_empty() || self.severities.contains(&alert.severity))
            && (self.statuses.is_empty() || self.statuses.contains(&alert.status))
            && allows(&self.rule_ids, alert.rule_id.as_ref())
            && allows(&self.camera_ids, alert.camera_id.as_ref())
            && (self.channels.is_empty()
                || alert
                    .channels
                    .iter()
                    .any(|name| self.channels.contains(name)))
    }
}
