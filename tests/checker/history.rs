//! What a subscriber was sent.

use super::subscribers::Wants;

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// An event was created.
    Event(i64),
    /// An alert came to this version.
    Alert(String, i64),
}

/// A change as it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    pub what: What,
    pub commit: i64,
    pub commit_end: bool,
}

/// One thing that happened to a subscriber.
#[derive(Debug, Clone)]
pub enum Step {
    Sent(Sent),
    /// It was told that at most so many changes after its cursor are gone, and started anew with the
    /// oldest one.
    FellOut(i64),
}

/// What happened to a subscriber, in order.
#[derive(Debug, Clone)]
pub struct History {
    pub name: String,
    pub wants: Wants,
    /// The versions of the alerts of the snapshot that it started with.
    pub snapshot: Option<Vec<(String, i64)>>,
    pub steps: Vec<Step>,
    pub reconnects: usize,
    /// Whether it did not get to the end in time.
    pub gave_up: bool,
    /// What it noticed itself.
    pub complaints: Vec<String>,
}

impl History {
    pub fn new(name: String, wants: Wants) -> Self {
        Self { name, wants, snapshot: None, steps: Vec::new(), reconnects: 0, gave_up: false, complaints: Vec::new() }
    }

    pub fn sent(&self) -> impl Iterator<Item = &Sent> {
        self.steps.iter().filter_map(|step| match step {
            Step::Sent(sent) => Some(sent),
            Step::FellOut(_) => None,
        })
    }

    pub fn delivered(&self) -> usize {
        self.sent().count()
    }

    pub fn fallen_out(&self) -> usize {
        self.steps.len() - self.delivered()
    }
}
