//! Cursors: opaque text that represents a position in the feed for clients.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use prost::Message;

use super::{
    Position, Seen, Start,
    history::{DecodedCursor, History},
};
use crate::error::{Error, Result};

/// Token for a position of a replaced history. Tokens of incarnations have the highest bit set, so
/// this value is never taken.
const REPLACED: u64 = 1;

/// Encodes and decodes the cursors of one history.
#[derive(Debug, Clone)]
pub struct Cursors(Arc<History>);

/// Content of a cursor. The format must stay readable across upgrades.
#[derive(Clone, PartialEq, Message)]
struct Cursor {
    #[prost(bytes = "vec", tag = "1")]
    database: Vec<u8>,
    #[prost(int64, tag = "2")]
    xid: i64,
    #[prost(int64, tag = "3")]
    seq: i64,
    /// End of the snapshot, see [`Seen`]; 0 without a snapshot.
    #[prost(int64, tag = "4")]
    seen_end: i64,
    /// Running transactions, as distances before `seen_end`, which keeps the numbers short.
    #[prost(int64, repeated, tag = "5")]
    running: Vec<i64>,
    /// Token of the incarnation; 0 in cursors issued before incarnations were introduced.
    #[prost(fixed64, tag = "6")]
    incarnation: u64,
}

impl Cursors {
    /// Creates the codec for cursors of this history.
    pub(super) fn new(history: Arc<History>) -> Self {
        Self(history)
    }

    /// Encodes a position without seen transactions.
    pub fn encode(&self, position: Position) -> String {
        self.encode_start(position, None)
    }

    /// Encodes a position together with the transactions that count as seen after it.
    pub fn encode_start(&self, position: Position, seen: Option<&Seen>) -> String {
        let seen = seen.filter(|seen| seen.matters_after(position));
        let incarnation = if position.generation == self.0.generation {
            seen.map_or_else(|| self.0.token_at(position), |seen| seen.incarnation)
        } else {
            REPLACED
        };
        let cursor = Cursor {
            database: self.0.database.as_bytes().to_vec(),
            xid: position.xid,
            seq: position.seq,
            seen_end: seen.map_or(0, |seen| seen.end),
            running: seen.map_or_else(Vec::new, |seen| seen.running.iter().map(|xid| seen.end - xid).collect()),
            incarnation,
        };
        BASE64_URL_SAFE_NO_PAD.encode(cursor.encode_to_vec())
    }

    /// Decodes a cursor. The history has yet to confirm the result.
    pub(super) fn decode(&self, text: &str) -> Result<DecodedCursor> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let decoded = bytes.and_then(|bytes| Cursor::decode(bytes.as_slice()).ok());
        let valid = decoded
            .filter(|cursor| cursor.xid >= 0 && cursor.seq >= 0 && cursor.database.len() == 16)
            .filter(|cursor| cursor.seen_end >= 0 && cursor.running.iter().all(|back| *back > 0));
        let cursor = valid.ok_or_else(|| Error::invalid("cursor", "is not a cursor of this server"))?;
        if cursor.database != self.0.database.as_bytes() {
            return Err(Error::invalid("cursor", "belongs to another database"));
        }
        let end = cursor.seen_end;
        let running = cursor.running.iter().map(|back| end.saturating_sub(*back));
        let start = Start {
            position: Position { generation: self.0.generation, xid: cursor.xid, seq: cursor.seq },
            seen: Seen { end, running: running.collect(), incarnation: cursor.incarnation },
        };
        Ok(DecodedCursor { start, incarnation: (cursor.incarnation != 0).then_some(cursor.incarnation) })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::feed::history::Incarnation;

    fn cursors(incarnations: &[(u128, i64)]) -> Cursors {
        let incarnations = incarnations
            .iter()
            .map(|&(id, xid)| Incarnation { id: Uuid::from_u128(id), begin: Position { xid, ..Position::default() } });
        Cursors(Arc::new(History {
            generation: 0,
            database: Uuid::from_u128(1),
            incarnations: incarnations.collect(),
            is_initial: true,
        }))
    }

    fn at(xid: i64) -> Position {
        Position { xid, seq: 7, ..Position::default() }
    }

    #[test]
    fn a_cursor_is_good_for_its_database_only() {
        let cursors = cursors(&[(3, 0)]);
        let position = Position { seq: i64::MAX, ..at(7) };
        let cursor = cursors.decode(&cursors.encode(position)).unwrap();
        assert_eq!((cursor.start.position, cursor.start.seen.end), (position, 0));
        let other = Cursors(Arc::new(History { database: Uuid::now_v7(), ..History::clone(&cursors.0) }));
        let error = other.decode(&cursors.encode(position)).unwrap_err();
        assert_eq!(error.to_string(), "`cursor` belongs to another database");
        for text in ["x", "%", "AAAA", "0"] {
            assert!(cursors.decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cursor_holds_what_was_seen_after_its_place() {
        let cursors = cursors(&[(3, 0)]);
        let seen = Seen { end: 1_000_100, running: vec![1_000_001, 1_000_090], incarnation: 3 };
        let decoded = cursors.decode(&cursors.encode_start(at(1_000_000), Some(&seen))).unwrap();
        assert_eq!(decoded.start.seen, seen);
        let is_seen = [1_000_001, 1_000_002, 1_000_090, 1_000_099, 1_000_100];
        let is_seen = is_seen.map(|xid| decoded.start.seen.contains(xid));
        assert_eq!(is_seen, [false, true, false, true, false]);
        // A cursor behind the snapshot no longer carries the snapshot.
        let later = cursors.encode_start(at(1_000_100), Some(&seen));
        assert_eq!(later, cursors.encode(at(1_000_100)));
    }

    #[test]
    fn a_cursor_names_the_incarnation_of_its_place() {
        let cursors = cursors(&[(3, 0), (4, 100), (5, 200)]);
        let token = |position| {
            let cursor = cursors.decode(&cursors.encode(position)).unwrap();
            cursor.incarnation
        };
        let tokens = [0, 99, 101, 199, 201].map(|xid| token(at(xid)));
        assert_eq!(tokens, [3, 3, 4, 4, 5].map(Some));
        let replaced = Position { generation: 1, ..at(50) };
        assert_eq!(token(replaced), Some(REPLACED));
    }
}
