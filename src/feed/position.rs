//! Positions in the feed, and the changes already seen by a watch.

/// Position in the feed: after the change with these numbers.
///
/// Positions are ordered by delivery. On SQLite, which has a single writer, `xid` is 0 and `seq`
/// decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Number of the history in this process. The number rises when the history is replaced, so
    /// that old and new positions never compare as equal. Cursors do not carry the generation.
    pub generation: u64,
    /// Transaction of the change on PostgreSQL: transaction id plus the offset of the feed.
    pub xid: i64,
    /// Sequence number of the change.
    pub seq: i64,
}

/// Snapshot of transactions that count as seen although their changes lie behind a position.
///
/// On PostgreSQL a committed change is delivered only after all older transactions have ended. Like
/// a PostgreSQL snapshot, the value covers all transactions before `end` except `running`. On
/// SQLite the snapshot is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// First transaction that had not begun.
    pub end: i64,
    /// Transactions before `end` that had not ended.
    pub running: Vec<i64>,
    /// Token of the incarnation that was current in the snapshot, see [`super::history::token`].
    pub incarnation: u64,
}

impl Seen {
    /// Returns true if the changes of this transaction were seen.
    pub fn contains(&self, xid: i64) -> bool {
        xid < self.end && !self.running.contains(&xid)
    }

    /// Returns true if seen transactions may follow this position.
    pub fn matters_after(&self, position: Position) -> bool {
        position.xid < self.end
    }
}

/// Start of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    /// Position after which delivery starts.
    pub position: Position,
    /// Transactions whose changes are skipped.
    pub seen: Seen,
}
