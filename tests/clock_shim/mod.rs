//! A wall clock that is wrong, for the processes that it is preloaded into.

use std::ffi::OsString;

use crate::preloaded::{Library, Preloaded};

static LIBRARY: Library = Library::new("tests/clock_shim/shim.rs");

/// Controls the clock of processes that were started with [`WrongClock::variables`].
pub struct WrongClock(Preloaded);

impl WrongClock {
    /// A clock that is this many seconds ahead.
    pub fn ahead(seconds: i64) -> Self {
        let clock = Self(Preloaded::new(&LIBRARY, 8));
        clock.step_to(seconds);
        clock
    }

    /// Has the clock be this many seconds ahead from now on.
    pub fn step_to(&self, seconds: i64) {
        self.0.write(&seconds.to_ne_bytes(), 0);
    }

    /// The variables of a process that is to have the clock.
    pub fn variables(&self) -> [(&'static str, OsString); 2] {
        self.0.variables("WATCHPOST_CLOCK_CONTROL")
    }
}
