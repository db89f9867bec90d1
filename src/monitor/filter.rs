//! Filter of a watch.

use std::collections::HashSet;

use crate::{
    entity::alert::{AlertSeverity, AlertStatus},
    error::{Error, Result},
    pb::{self, watch_response::Update},
    rpc::{check, enums::FromProto},
    topics,
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
            Ok(pb::Topic::Unspecified) => Err(Error::invalid(format!("topics[{index}]"), "must not be unspecified")),
            Ok(topic) => Ok(topic),
            Err(_) => Err(Error::invalid(format!("topics[{index}]"), "is not a value that this server knows")),
        };
        let topics = request.topics.iter().enumerate().map(topic).collect::<Result<_>>()?;
        let alerts = request.alert_filter.clone().unwrap_or_default();
        AlertSeverity::all_from_proto("alert_filter.severities", &alerts.severities)?;
        AlertStatus::all_from_proto("alert_filter.statuses", &alerts.statuses)?;
        let rule_ids = check::uuids("alert_filter.rule_ids", &alerts.rule_ids)?;
        let camera_ids = check::texts("alert_filter.camera_ids", &alerts.camera_ids, MAX_FILTER_VALUES, &(1..=64))?;
        let channels = check::texts("alert_filter.channels", &alerts.channels, MAX_FILTER_VALUES, &(1..=100))?;
        let gpus = request.gpu_stats_filter.clone().unwrap_or_default();
        let gpu_uuids = check::texts("gpu_stats_filter.gpu_uuids", &gpus.gpu_uuids, MAX_FILTER_VALUES, &(1..=96))?;
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

    /// Returns true if the filter includes any topic of the change feed: any topic but live GPU stats.
    pub(super) fn includes_changes(&self) -> bool {
        self.topics.is_empty() || self.topics.iter().any(|topic| *topic != pb::Topic::GpuStats)
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
        let Some(update) = update else {
            return false;
        };
        let matches_topic = match topics::topic_of(update) {
            Some(topic) => self.includes_topic(topic),
            // A change of an unknown topic concerns watches of all topics.
            None => matches!(update, Update::Unreadable(_)) && self.topics.is_empty(),
        };
        matches_topic && self.matches_fields(update)
    }

    /// Returns true if the fields of a change match the filter of its topic.
    fn matches_fields(&self, update: &Update) -> bool {
        if let Update::Alert(change) = update {
            return change.alert.as_ref().is_some_and(|alert| self.matches_alert(alert));
        }
        if let Update::GpuEvent(event) = update {
            return self.includes_gpu(event.gpu_uuid.as_deref().unwrap_or_default());
        }
        true
    }

    fn matches_alert(&self, alert: &pb::Alert) -> bool {
        fn allows(set: &HashSet<String>, value: Option<&String>) -> bool {
            set.is_empty() || value.is_some_and(|value| set.contains(value))
        }
        (self.severities.is_empty() || self.severities.contains(&alert.severity))
            && (self.statuses.is_empty() || self.statuses.contains(&alert.status))
            && allows(&self.rule_ids, alert.rule_id.as_ref())
            && allows(&self.camera_ids, alert.camera_id.as_ref())
            && (self.channels.is_empty() || alert.channels.iter().any(|name| self.channels.contains(name)))
    }
}
