//! The change feed: changes recorded in the transaction that makes them, and read in commit-safe
//! order.
//!
//! The feed depends on no family: a change has a topic, a key and the bytes of a message.

pub mod blockers;
pub mod bounds;
pub mod cursor;
pub mod follow;
pub mod history;
pub mod incarnations;
pub mod position;
pub mod read;
pub mod reader;
pub mod record;
pub mod retention;
pub mod tail;

mod ring;

pub use bounds::newest_recorded_at;
pub use cursor::Cursors;
pub use follow::{FeedUpdate, Follower, follow};
pub use position::{Position, Seen, Start};
pub use read::Change;
pub use reader::Feed;
pub use record::{Record, record, rows, rows_on_postgres};
pub use ring::{Entry, Readable};
