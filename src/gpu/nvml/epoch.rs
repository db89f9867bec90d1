//! Epochs of the counters of a card.

/// Period in which no counter has decreased.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Start of the period in milliseconds since 1970. Serves as the id.
    id: i64,
    previous: [Option<i64>; 2],
}

impl Epoch {
    pub(super) fn new(now: i64) -> Self {
        Self { id: now, previous: [None; 2] }
    }

    /// Epoch of the counters, which were read at `now`, in milliseconds since 1970.
    pub(super) fn of_counters(&mut self, now: i64, counters: [Option<i64>; 2]) -> i64 {
        let has_decreased = self.previous.iter().zip(counters).any(|(previous, counter)| {
            previous.is_some_and(|previous| counter.is_some_and(|counter| counter < previous))
        });
        if has_decreased {
            // The clock may be set back, but epochs must differ.
            *self = Self::new(now.max(self.id + 1));
        }
        for (previous, counter) in self.previous.iter_mut().zip(counters) {
            *previous = counter.or(*previous);
        }
        self.id
    }
}
