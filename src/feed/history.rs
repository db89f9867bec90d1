//! The history that the feed tells, and which cursors belong to it.
//!
//! A database can be replaced by a copy of itself, or by an older state, while its content looks the same. So every start
//! of a process, and every replacement that is noticed, begins a new incarnation, and a cursor names the incarnation in
//! which its position lies. A position beyond the end of its incarnation, or in an incarnation that the database does not
//! know, belongs to a history that is gone.

use uuid::Uuid;

use super::{Position, Start};

/// A stretch of the history, up to where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Random, so that no copy of the database gives the same id to an incarnation of its own.
    pub id: Uuid,
    /// Position up to which changes belong to earlier incarnations.
    pub begin: Position,
}

/// The half of the id of an incarnation that cursors carry.
pub fn token(id: Uuid) -> u64 {
    id.as_u64_pair().1
}

/// The incarnations since the history was last replaced, the oldest first. There is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Number of the history in this process, see [`Position::generation`].
    pub generation: u64,
    /// Id of the database, which copies share.
    pub database: Uuid,
    /// The incarnations. What lies before the begin of the first one belongs to it too.
    pub incarnations: Vec<Incarnation>,
    /// Whether the first incarnation is the one of the migration, to which cursors without an incarnation belong.
    pub is_initial: bool,
}

/// The start that a cursor names, and the token of its incarnation; none in cursors that were issued before there were
/// incarnations.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Where the watch wants to go on.
    pub start: Start,
    /// The incarnation in which the cursor was issued.
    pub incarnation: Option<u64>,
}

/// What the database has at the position of a claim.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// Whether the change that the position names is there.
    pub is_kept: bool,
    /// The place up to which changes were deleted.
    pub pruned: Position,
    /// The place after everything that was committed.
    pub end: Position,
}

impl History {
    /// The id of the current incarnation.
    pub fn current(&self) -> Uuid {
        self.incarnations
            .last()
            .map_or(Uuid::nil(), |current| current.id)
    }

    /// Whether this history has an incarnation with this id.
    pub fn contains(&self, id: Uuid) -> bool {
        // Almost always it is the last one.
        let mut ids = self.incarnations.iter().rev();
        ids.any(|incarnation| incarnation.id == id)
    }

    /// Whether everything of the other history is a part of this one.
    pub fn continues(&self, other: &Self) -> bool {
        self.database == other.database && self.contains(other.current())
    }

    /// The token of the incarnation in which a position lies.
    pub fn token_at(&self, position: Position) -> u64 {
        let mut newest_first = self.incarnations.iter().rev();
        let found = newest_first.find(|incarnation| is_after(position, incarnation.begin));
        let found = found.or_else(|| self.incarnations.first());
        found.map_or(0, |incarnation| token(incarnation.id))
    }

    /// Whether the history is the one in which a cursor was issued.
    pub fn confirms(&self, claim: &Claim, evidence: &Evidence) -> bool {
        let index = match claim.incarnation {
            Some(named) => {
                let mut incarnations = self.incarnations.iter();
                incarnations.position(|incarnation| token(incarnation.id) == named)
            }
            None => self.is_initial.then_some(0),
        };
        let Some(index) = index else {
            return false;
        };
        let Start { position, seen } = &claim.start;
        let next = self.incarnations.get(index + 1);
        let end = next.map_or(evidence.end, |next| next.begin);
        if is_after(*position, end) {
            return false;
        }
        // A snapshot that had seen the begin of the next incarnation would have been given that one.
        let is_seen_beyond = match next {
            Some(next) => seen.contains(next.begin.xid),
            None => seen.end > end.xid.saturating_add(1),
        };
        if is_seen_beyond {
            return false;
        }
        if claim.incarnation.is_none() {
            // Such a position is not always that of a change. Numbers of changes only rise, so what it has seen is there.
            return position.seq <= end.seq;
        }
        evidence.is_kept || !is_after(*position, evidence.pruned)
    }
}

/// Whether a position lies after another one of whatever generation.
fn is_after(position: Position, other: Position) -> bool {
    (position.xid, position.seq) > (other.xid, other.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Seen;

    fn at(xid: i64, seq: i64) -> Position {
        Position {
            xid,
            seq,
            ..Position::default()
        }
    }

    fn history(begins: &[(u128, Position)], is_initial: bool) -> History {
        let incarnations = begins.iter().map(|&(id, begin)| Incarnation {
            id: Uuid::from_u128(id),
            begin,
        });
        History {
            generation: 0,
            database: Uuid::nil(),
            incarnations: incarnations.collect(),
            is_initial,
        }
    }

    fn claim(incarnation: Option<u64>, position: Position) -> Claim {
        let seen = Seen::default();
        Claim {
            start: Start { position, seen },
            incarnation,
        }
    }

    const NOW: Evidence = Evidence {
        is_kept: true,
        pruned: Position {
            generation: 0,
            xid: 10,
            seq: 5,
        },
        end: Position {
            generation: 0,
            xid: 300,
            seq: 90,
        },
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
            let claim = claim(Some(incarnation), at(xid, 40));
            assert_eq!(history.confirms(&claim, &NOW), good, "{incarnation} {xid}");
        }
    }

    #[test]
    fn a_position_without_its_change_is_not_good_unless_it_was_pruned() {
        let history = history(&[(7, at(0, 0))], true);
        let gone = Evidence {
            is_kept: false,
            ..NOW
        };
        for (position, good) in [(at(11, 6), false), (at(10, 5), true), (at(9, 4), true)] {
            let claim = claim(Some(7), position);
            assert!(history.confirms(&claim, &NOW));
            assert_eq!(history.confirms(&claim, &gone), good, "{position:?}");
        }
    }

    #[test]
    fn cursors_of_before_incarnations_are_good_up_to_the_first_start() {
        let gone = Evidence {
            is_kept: false,
            ..NOW
        };
        let begins = [(7, at(0, 0)), (8, at(100, 40))];
        for (is_initial, position, good) in [
            (true, at(99, 40), true),
            (true, at(99, 41), false),
            (true, at(101, 40), false),
            (false, at(99, 40), false),
        ] {
            let history = history(&begins, is_initial);
            let claim = claim(None, position);
            assert_eq!(history.confirms(&claim, &gone), good, "{position:?}");
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
            let mut claim = claim(Some(incarnation), at(80, 30));
            claim.start.seen.end = end;
            claim.start.seen.running = running;
            assert_eq!(history.confirms(&claim, &NOW), good, "{incarnation} {end}");
        }
    }
}
