//! Places in the feed, and the cursors that clients hold for them.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;
use uuid::Uuid;

use crate::error::{Error, Result};

/// A place in the feed: after the change with these numbers.
///
/// Their order is the order of delivery. On SQLite, which has one writer, `xid` is 0 and `seq` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The transaction that wrote the change, on PostgreSQL.
    pub xid: i64,
    /// The number of the change.
    pub seq: i64,
}

/// Transactions that count as seen although their changes lie behind a place: on PostgreSQL some
/// may be committed already that the feed can only deliver when an older one has ended.
///
/// Like a snapshot of PostgreSQL: all before `end`, but for those that were running. On SQLite none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The first transaction that had not begun.
    pub end: i64,
    /// Those before it that had not ended.
    pub running: Vec<i64>,
}

impl Seen {
    /// Whether what this transaction changed was seen.
    pub fn contains(&self, xid: i64) -> bool {
        xid < self.end && !self.running.contains(&xid)
    }

    /// Whether there may be such transactions after this place.
    pub fn matters_after(&self, position: Position) -> bool {
        position.xid < self.end
    }
}

/// Where a watch starts, or goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// After this place,
    pub position: Position,
    /// but without these.
    pub seen: Seen,
}

/// Makes cursors of one database, and reads them.
#[derive(Debug, Clone, Copy)]
pub struct Cursors {
    database: Uuid,
}

/// What a cursor holds. It outlives upgrades.
#[derive(Clone, PartialEq, Message)]
struct Cursor {
    #[prost(bytes = "vec", tag = "1")]
    database: Vec<u8>,
    #[prost(int64, tag = "2")]
    xid: i64,
    #[prost(int64, tag = "3")]
    seq: i64,
    /// See [`Seen`]; 0 if there are none.
    #[prost(int64, tag = "4")]
    seen_end: i64,
    /// How far before that the running ones are, which keeps the numbers short.
    #[prost(int64, repeated, tag = "5")]
    running: Vec<i64>,
}

impl Cursors {
    /// Cursors of the database with this id.
    pub fn new(database: Uuid) -> Self {
        Self { database }
    }

    /// The cursor for a place.
    pub fn encode(&self, position: Position) -> String {
        self.encode_start(position, None)
    }

    /// The cursor for a place, and for what counts as seen after it.
    pub fn encode_start(&self, position: Position, seen: Option<&Seen>) -> String {
        let seen = seen.filter(|seen| seen.matters_after(position));
        let cursor = Cursor {
            database: self.database.as_bytes().to_vec(),
            xid: position.xid,
            seq: position.seq,
            seen_end: seen.map_or(0, |seen| seen.end),
            running: seen.map_or_else(Vec::new, |seen| {
                seen.running.iter().map(|xid| seen.end - xid).collect()
            }),
        };
        BASE64_URL_SAFE_NO_PAD.encode(cursor.encode_to_vec())
    }

    /// Where the watch goes on that sends this cursor.
    pub fn decode(&self, text: &str) -> Result<Start> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = bytes.and_then(|bytes| Cursor::decode(bytes.as_slice()).ok());
        let cursor = cursor
            .filter(|cursor| cursor.xid >= 0 && cursor.seq >= 0 && cursor.database.len() == 16)
            .filter(|cursor| cursor.seen_end >= 0 && cursor.running.iter().all(|back| *back > 0));
        let cursor =
            cursor.ok_or_else(|| Error::invalid("cursor", "is not a cursor of this server"))?;
        if cursor.database != self.database.as_bytes() {
            return Err(Error::invalid("cursor", "belongs to another database"));
        }
        let end = cursor.seen_end;
        Ok(Start {
            position: Position {
                xid: cursor.xid,
                seq: cursor.seq,
            },
            seen: Seen {
                end,
                running: cursor
                    .running
                    .iter()
                    .map(|back| end.saturating_sub(*back))
                    .collect(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_database_only() {
        let cursors = Cursors::new(Uuid::now_v7());
        let position = Position {
            xid: 7,
            seq: i64::MAX,
        };
        let start = cursors.decode(&cursors.encode(position)).unwrap();
        assert_eq!((start.position, start.seen), (position, Seen::default()));
        let other = Cursors::new(Uuid::now_v7());
        let error = other.decode(&cursors.encode(position)).unwrap_err();
        assert_eq!(error.to_string(), "`cursor` belongs to another database");
        for text in ["x", "%", "AAAA", "0"] {
            assert!(cursors.decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cursor_holds_what_was_seen_after_its_place() {
        let cursors = Cursors::new(Uuid::now_v7());
        let seen = Seen {
            end: 1_000_100,
            running: vec![1_000_001, 1_000_090],
        };
        let at = |xid| Position { xid, seq: 7 };
        let decoded = cursors
            .decode(&cursors.encode_start(at(1_000_000), Some(&seen)))
            .unwrap();
        assert_eq!(decoded.seen, seen);
        let is_seen = [1_000_001, 1_000_002, 1_000_090, 1_000_099, 1_000_100];
        let is_seen = is_seen.map(|xid| decoded.seen.contains(xid));
        assert_eq!(is_seen, [false, true, false, true, false]);
        // Once the feed is past it, it is forgotten.
        let later = cursors.encode_start(at(1_000_100), Some(&seen));
        assert_eq!(later, cursors.encode(at(1_000_100)));
    }
}
