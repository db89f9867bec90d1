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
}

impl Cursors {
    /// Cursors of the database with this id.
    pub fn new(database: Uuid) -> Self {
        Self { database }
    }

    /// The cursor for a place.
    pub fn encode(&self, position: Position) -> String {
        let cursor = Cursor {
            database: self.database.as_bytes().to_vec(),
            xid: position.xid,
            seq: position.seq,
        };
        BASE64_URL_SAFE_NO_PAD.encode(cursor.encode_to_vec())
    }

    /// The place that a client's cursor stands for.
    pub fn decode(&self, text: &str) -> Result<Position> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = bytes.and_then(|bytes| Cursor::decode(bytes.as_slice()).ok());
        let cursor = cursor
            .filter(|cursor| cursor.xid >= 0 && cursor.seq >= 0 && cursor.database.len() == 16);
        let cursor =
            cursor.ok_or_else(|| Error::invalid("cursor", "is not a cursor of this server"))?;
        if cursor.database != self.database.as_bytes() {
            return Err(Error::invalid("cursor", "belongs to another database"));
        }
        Ok(Position {
            xid: cursor.xid,
            seq: cursor.seq,
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
        assert_eq!(cursors.decode(&cursors.encode(position)).unwrap(), position);
        let other = Cursors::new(Uuid::now_v7());
        let error = other.decode(&cursors.encode(position)).unwrap_err();
        assert_eq!(error.to_string(), "`cursor` belongs to another database");
        for text in ["x", "%", "AAAA", "0"] {
            assert!(cursors.decode(text).is_err(), "{text}");
        }
    }
}
