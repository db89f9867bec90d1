//! Change of the feed, decoded and encoded once for all subscribers.

use bytes::{BufMut, Bytes, BytesMut};
use prost::{DecodeError, Message};

use crate::{
    feed::{self, Change, Readable},
    pb::{self, watch_response::Update},
    topics,
};

/// Change shared by all subscribers: decoded once for the filters, encoded once for the wire.
#[derive(Debug)]
pub struct Announcement {
    /// Decoded update. `None` for a change that a newer server wrote.
    pub update: Option<Update>,
    /// Encoded `WatchResponse`.
    pub encoded: Bytes,
}

impl Announcement {
    /// Completes a recorded change with its cursor and its transaction.
    pub fn from_change(change: &Change, cursor: String) -> Self {
        // Fields of an encoded message may be appended in any order.
        let tail = pb::WatchResponse { cursor, commit: Some(change.commit), ..Default::default() };
        let response = match pb::WatchResponse::decode(change.message.clone()) {
            Ok(response) => response,
            Err(error) => return Self::unreadable(change, &error, tail),
        };
        let mut encoded = BytesMut::with_capacity(change.message.len() + tail.encoded_len());
        encoded.put_slice(&change.message);
        encoded.put_slice(&tail.encode_to_vec());
        Self { update: response.update, encoded: encoded.freeze() }
    }

    /// Replacement for a change that cannot be decoded, which subscribers could not decode either.
    fn unreadable(change: &Change, error: &DecodeError, tail: pb::WatchResponse) -> Self {
        let response = pb::WatchResponse {
            update: Some(Update::Unreadable(pb::UnreadableChange {
                topic: change.topic.clone(),
                key: change.key.clone(),
                sequence: change.position.seq,
                problem: error.to_string(),
            })),
            ..tail
        };
        Self { encoded: response.encode_to_vec().into(), update: response.update }
    }

    /// Returns true if this is a change of the topic that could not be decoded.
    pub fn is_unreadable(&self, topic: pb::Topic) -> bool {
        matches!(&self.update, Some(Update::Unreadable(change)) if topics::parse(&change.topic) == Some(topic))
    }
}

impl Readable for Announcement {
    fn problem(&self) -> Option<&str> {
        if let Some(Update::Unreadable(change)) = &self.update {
            return Some(&change.problem);
        }
        None
    }
}

/// Change feed of shared announcements.
pub type Feed = feed::Feed<Announcement>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Position;

    #[test]
    fn a_change_that_cannot_be_decoded_is_announced_as_such() {
        let change = Change {
            position: Position { xid: 1, seq: 9, ..Position::default() },
            commit: 3,
            ends_commit: true,
            topic: "alerts".into(),
            key: "k".into(),
            message: vec![0x0f].into(),
            created_at: chrono::Utc::now(),
        };
        let announcement = Announcement::from_change(&change, "here".into());
        assert!(announcement.problem().is_some());
        assert!(announcement.is_unreadable(pb::Topic::Alerts));
        assert!(!announcement.is_unreadable(pb::Topic::Events));
        let sent = pb::WatchResponse::decode(announcement.encoded).unwrap();
        assert_eq!((sent.cursor.as_str(), sent.commit), ("here", Some(3)));
        let Some(Update::Unreadable(change)) = sent.update else {
            panic!("not unreadable: {sent:?}");
        };
        assert_eq!((change.key.as_str(), change.sequence), ("k", 9));
    }

    #[test]
    fn an_announcement_is_the_recorded_change_with_its_cursor() {
        let alert = pb::AlertChange { kind: 1, alert: Some(pb::Alert { event_id: 7, ..Default::default() }) };
        let recorded = pb::WatchResponse { update: Some(Update::Alert(alert)), ..Default::default() };
        let change = Change {
            position: Position::default(),
            commit: 3,
            ends_commit: true,
            topic: "alerts".into(),
            key: "k".into(),
            message: recorded.encode_to_vec().into(),
            created_at: crate::clock::now(),
        };
        let announcement = Announcement::from_change(&change, "here".into());
        let sent = pb::WatchResponse::decode(announcement.encoded).unwrap();
        assert_eq!(sent, pb::WatchResponse { cursor: "here".into(), commit: Some(3), ..recorded });
        assert_eq!(announcement.update, sent.update);
    }
}
