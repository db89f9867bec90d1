//! The change feed: what changed, recorded with the change and read in commit-safe order.
//!
//! It knows no family: a change has a topic, a key and the bytes of a message.

use sea_orm::{ActiveValue::Set, DatabaseTransaction};

pub mod position;
pub mod read;
pub mod retention;
pub mod tail;

pub use position::{Cursors, Position};
pub use read::Change;
pub use tail::{Entry, Feed};

use crate::{
    entity::{self, change},
    error::Result,
    rpc::insert::insert_all,
};

/// What kind of thing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Alerts,
    Events,
    Cameras,
    AlertRules,
    GpuEvents,
}

impl Topic {
    /// How the database has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Events => "events",
            Self::Cameras => "cameras",
            Self::AlertRules => "alert_rules",
            Self::GpuEvents => "gpu_events",
        }
    }
}

/// A change to be recorded.
#[derive(Debug)]
pub struct Record {
    /// What kind of thing changed.
    pub topic: Topic,
    /// Which one, by its id.
    pub key: String,
    /// What subscribers are sent of it.
    pub message: Vec<u8>,
}

/// Records changes in the transaction that makes them: neither is ever committed without the other.
pub async fn record(
    tx: &DatabaseTransaction,
    changes: impl IntoIterator<Item = Record>,
) -> Result<()> {
    let created_at = entity::now();
    let rows: Vec<_> = changes
        .into_iter()
        .map(|change| change::ActiveModel {
            topic: Set(change.topic.as_str().to_string()),
            key: Set(change.key),
            message: Set(change.message),
            created_at: Set(created_at),
            ..Default::default()
        })
        .collect();
    insert_all(tx, rows).await
}
