//! History of the feed, and the check that a cursor belongs to the history.
//!
//! A database can be replaced by a copy or by an older state while its content looks the same.
//! Every process start and every detected replacement therefore begins a new incarnation. A cursor
//! names the incarnation of its position. A position beyond the end of its incarnation, or in an
//! unknown incarnation, belongs to a lost history.

use uuid::Uuid;

use super::{Position, Start};

/// Section of the history, up to the begin of the next incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Random id, so that two copies of a database never create the same incarnation.
    pub id: Uuid,
    /// Position up to which changes belong to earlier incarnations.
    pub begin: Position,
}

/// Token for cursors: the lower 64 bits of an incarnation id.
pub fn token(id: Uuid) -> u64 {
    id.as_u64_pair().1
}

/// Incarnations since the last replacement of the history, oldest first. At least one exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Number of the history in this process, see [`Position::generation`].
    pub generation: u64,
    /// Id of the database, shared by all copies.
    pub database: Uuid,
    /// Incarnations, oldest first. Positions before the first begin belong to the first
    /// incarnation.
    pub incarnations: Vec<Incarnation>,
    /// True if the first incarnation was created by the migration. Cursors without an incarnation
    /// belong to that incarnation.
    pub is_initial: bool,
}

/// Content of a decoded cursor, not yet confirmed by the history.
#[derive(Debug, Clone)]
pub struct DecodedCursor {
    /// Start that the client requests.
    pub start: Start,
    /// Token of the incarnation in which the cursor was issued; absent in cursors issued before
    /// incarnations were introduced.
    pub incarnation: Option<u64>,
}

/// State of the database at the position of a cursor.
#[derive(Debug, Clone, Copy)]
pub struct StoredState {
    /// True if the change at the position is still stored.
    pub is_kept: bool,
    /// Position up to which changes were deleted.
    pub pruned: Position,
    /// Position after every committed change.
    pub end: Position,
}

impl History {
    /// Returns the id of the current incarnation.
    pub fn current(&self) -> Uuid {
        self.incarnations.last().map_or(Uuid::nil(), |current| current.id)
    }

    /// Returns true if this history contains the incarnation.
    pub fn contains(&self, id: Uuid) -> bool {
        // The id is nearly always the last one, so the search runs backwards.
        let mut ids = self.incarnations.iter().rev();
        ids.any(|incarnation| incarnation.id == id)
    }

    /// Returns true if this history contains all of the other history.
    pub fn continues(&self, other: &Self) -> bool {
        self.database == other.database && self.contains(other.current())
    }

    /// Returns the token of the incarnation that contains a position.
    pub fn token_at(&self, position: Position) -> u64 {
        let mut newest_first = self.incarnations.iter().rev();
        let incarnation = newest_first
            .find(|incarnation| is_after(position, incarnation.begin))
            .or_else(|| self.incarnations.first());
        incarnation.map_or(0, |incarnation| token(incarnation.id))
    }

    /// Returns true if the cursor was issued in this history.
    pub fn confirms(&self, cursor: &DecodedCursor, stored: &StoredState) -> bool {
        let index = match cursor.incarnation {
            Some(named) => {
                let mut incarnations = self.incarnations.iter();
                incarnations.position(|incarnation| token(incarnation.id) == named)
            }
            None => self.is_initial.then_some(0),
        };
        let Some(index) = index else {
            return false;
        };
        let Start { position, seen } = &cursor.start;
        let next = self.incarnations.get(index + 1);
        let end = next.map_or(stored.end, |next| next.begin);
        if is_after(*position, end) {
            return false;
        }
        // A snapshot that includes the begin of the next incarnation would carry the token of the
        // next incarnation.
        let is_seen_beyond = match next {
            Some(next) => seen.contains(next.begin.xid),
            None => seen.end > end.xid.saturating_add(1),
        };
        if is_seen_beyond {
            return false;
        }
        if cursor.incarnation.is_none() {
            // Such a position may lie between changes. Sequence numbers only rise, so every seen
            // change is stored.
            return position.seq <= end.seq;
        }
        stored.is_kept || !is_after(*position, stored.pruned)
    }
}

/// Compares two positions regardless of their generation.
fn is_after(position: Position, other: Position) -> bool {
    (position.xid, position.seq) > (other.xid, other.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Seen;

    fn at(xid: i64, seq: i64) -> Position {
        Position { xid, seq, ..Position::default() }
    }

    fn history(begins: &[(u128, Position)], is_initial: bool) -> History {
        let incarnations = begins.iter().map(|&(id, begin)| Incarnation { id: Uuid::from_u128(id), begin });
        History { generation: 0, database: Uuid::nil(), incarnations: incarnations.collect(), is_initial }
    }

    fn cursor(incarnation: Option<u64>, position: Position) -> DecodedCursor {
        let seen = Seen::default();
        DecodedCursor { start: Start { position, seen }, incarnation }
    }

    const NOW: StoredState = StoredState {
        is_kept: true,
        pruned: Position { generation: 0, xid: 10, seq: 5 },
        end: Position { generation: 0, xid: 300, seq: 90 },
    };

    #[test]
    fn a_position_is_good_up_to_the_end_of_its_incarnation() {
        let history = history(&[(7, at(0, 0)), (8, at(100, 40)), (9, at(200, 60))], true);
        for (incarnation, xid, good) in [
            (7, 100, true),
            (7, 101, false),
            (8, 101, true),
            (8, 200, true),
            (8, 201, false),
            (9, 201, true),
            (9, 300, true),
            (9, 301, false),
            (6, 50, false),
        ] {
            let cursor = cursor(Some(incarnation), at(xid, 40));
            assert_eq!(history.confirms(&cursor, &NOW), good, "{incarnation} {xid}");
        }
    }

    #[test]
    fn a_position_without_its_change_is_not_good_unless_it_was_pruned() {
        let history = history(&[(7, at(0, 0))], true);
        let gone = StoredState { is_kept: false, ..NOW };
        for (position, good) in [(at(11, 6), false), (at(10, 5), true), (at(9, 4), true)] {
            let cursor = cursor(Some(7), position);
            assert!(history.confirms(&cursor, &NOW));
            assert_eq!(history.confirms(&cursor, &gone), good, "{position:?}");
        }
    }

    #[test]
    fn cursors_of_before_incarnations_are_good_up_to_the_first_start() {
        let gone = StoredState { is_kept: false, ..NOW };
        let begins = [(7, at(0, 0)), (8, at(100, 40))];
        for (is_initial, position, good) in [
            (true, at(99, 40), true),
            (true, at(99, 41), false),
            (true, at(101, 40), false),
            (false, at(99, 40), false),
        ] {
            let history = history(&begins, is_initial);
            let cursor = cursor(None, position);
            assert_eq!(history.confirms(&cursor, &gone), good, "{position:?}");
        }
    }

    #[test]
    fn what_was_seen_must_not_reach_beyond_the_incarnation() {
        let history = history(&[(7, at(0, 0)), (8, at(100, 40))], true);
        for (incarnation, end, running, good) in [
            (7, 100, vec![], true),
            (7, 101, vec![], false),
            (7, 150, vec![90, 100], true),
            (8, 301, vec![], true),
            (8, 302, vec![], false),
        ] {
            let mut cursor = cursor(Some(incarnation), at(80, 30));
            cursor.start.seen.end = end;
            cursor.start.seen.running = running;
            assert_eq!(history.confirms(&cursor, &NOW), good, "{incarnation} {end}");
        }
    }
}
