//! Topics of the change feed, and the one way from an update of the API to a record of the feed.

use prost::Message;

use crate::{
    feed::Record,
    pb::{Topic, WatchResponse, watch_response::Update},
};

/// Prefix of the names of topics in the API.
const PREFIX: &str = "TOPIC_";

/// Topic of an update. `None` for updates that are no changes: live GPU stats, heartbeats and the end of a snapshot.
///
/// A change that cannot be decoded has the topic with which it was recorded; `None` if this server does not know that.
pub fn topic_of(update: &Update) -> Option<Topic> {
    Some(match update {
        Update::Alert(_) => Topic::Alerts,
        Update::Event(_) => Topic::Events,
        Update::Camera(_) => Topic::Cameras,
        Update::AlertRule(_) => Topic::AlertRules,
        Update::GpuEvent(_) => Topic::GpuEvents,
        Update::CameraZone(_) => Topic::CameraZones,
        Update::Silence(_) => Topic::Silences,
        Update::NotificationChannel(_) => Topic::NotificationChannels,
        Update::JobChanges(_) => Topic::Jobs,
        Update::JobLogs(_) => Topic::JobLogs,
        Update::JobQueue(_) => Topic::JobQueues,
        Update::JobType(_) => Topic::JobTypes,
        Update::JobSchedule(_) => Topic::JobSchedules,
        Update::Unreadable(change) => return parse(&change.topic),
        Update::GpuStats(_) | Update::Heartbeat(_) | Update::SnapshotEnd(_) => return None,
    })
}

/// Name of a topic in the database: that of the API in lower case, without its prefix.
pub fn name(topic: Topic) -> String {
    let name = topic.as_str_name();
    name.strip_prefix(PREFIX).unwrap_or(name).to_lowercase()
}

/// Topic with this name in the database. `None` for one that this server does not know.
pub fn parse(name: &str) -> Option<Topic> {
    Topic::from_str_name(&format!("{PREFIX}{}", name.to_uppercase()))
}

/// Record of a change in the feed. `key` is the id of the resource that has changed; `update` must be a change.
pub fn record(key: impl Into<String>, update: Update) -> Record {
    let topic = topic_of(&update);
    debug_assert!(topic.is_some(), "an update that is no change: {update:?}");
    let message = WatchResponse { update: Some(update), ..Default::default() };
    Record { topic: name(topic.unwrap_or_default()), key: key.into(), message: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_topics_can_be_read_again() {
        for topic in (1..).map_while(|number| Topic::try_from(number).ok()) {
            assert_eq!(parse(&name(topic)), Some(topic));
        }
        assert_eq!(name(Topic::GpuEvents), "gpu_events");
        assert_eq!(parse("nothing"), None);
    }
}
