//! Positions in the feed, and what a watch that starts at one has seen.

/// A place in the feed: after the change with these numbers.
///
/// Their order is the order of delivery. On SQLite, which has one writer, `xid` is 0 and `seq` decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Number of the history in this process: it rises when the history is found to be replaced, so that positions of
    /// the old one are not taken for positions of the new one. Cursors do not carry it.
    pub generation: u64,
    /// The transaction that wrote the change, on PostgreSQL: its id and the offset of the feed.
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
    /// Token of the incarnation that was current in the snapshot, see [`super::history::token`].
    pub incarnation: u64,
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
