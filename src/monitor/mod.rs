//! `MonitorService`: the change feed and the live GPU stats, joined into one stream per subscriber.

mod filter;
mod places;
mod service;
mod snapshot;
mod wire;

pub use places::Places;
pub use service::{Monitor, Settings, heartbeat_interval};
pub use snapshot::Snapshots;
pub use wire::MonitorServer;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::{
    feed::{self, Change},
    pb::{self, watch_response::Update},
};

/// A change as every subscriber at the head shares it: decoded once for the filters, encoded once for the wire.
#[derive(Debug)]
pub struct Announcement {
    /// What happened. `None` in a change that a newer server wrote.
    pub update: Option<Update>,
    /// The whole `WatchResponse`.
    pub encoded: Bytes,
}

impl Announcement {
    /// Completes a recorded change with its cursor and its transaction.
    pub fn make(change: &Change, cursor: String) -> Self {
        let response = pb::WatchResponse::decode(change.message.clone()).unwrap_or_default();
        // The fields of a message may be encoded one after the other in any order.
        let place = pb::WatchResponse {
            cursor,
            commit: Some(change.commit),
            ..Default::default()
        };
        let mut encoded = BytesMut::with_capacity(change.message.len() + place.encoded_len());
        encoded.put_slice(&change.message);
        encoded.put_slice(&place.encode_to_vec());
        Self {
            update: response.update,
            encoded: encoded.freeze(),
        }
    }
}

/// The change feed, as it is watched.
pub type Feed = feed::Feed<Announcement>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Position;

    #[test]
    fn an_announcement_is_the_recorded_change_with_its_cursor() {
        let alert = pb::AlertChange {
            kind: 1,
            alert: Some(pb::Alert {
                event_id: 7,
                ..Default::default()
            }),
        };
        let recorded = pb::WatchResponse {
            update: Some(Update::Alert(alert)),
            ..Default::default()
        };
        let change = Change {
            position: Position::default(),
            commit: 3,
            ends_commit: true,
            topic: "alerts".into(),
            key: "k".into(),
            message: recorded.encode_to_vec().into(),
            created_at: chrono::Utc::now(),
        };
        let announcement = Announcement::make(&change, "here".into());
        let sent = pb::WatchResponse::decode(announcement.encoded).unwrap();
        assert_eq!(
            sent,
            pb::WatchResponse {
                cursor: "here".into(),
                commit: Some(3),
                ..recorded
            }
        );
        assert_eq!(announcement.update, sent.update);
    }
}
