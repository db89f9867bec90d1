//! Every schedule of every place, minute by minute over 1970 to 2037: a check and no load.

#[path = "../../tests/oracle/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod oracle;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use chrono::{DateTime, Utc};
use serde_json::json;
use watchpost::time_zones;

/// Compares as many zones of the IANA database, or all, with the oracle. Returns whether nothing differs.
pub fn check(zones: usize) -> bool {
    let zones: Vec<_> = time_zones::names().take(zones).collect();
    let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
    let (from, until) = (time("1970-01-03T00:00:00Z"), time("2038-01-01T00:00:00Z"));
    let (next, minutes, different) = (AtomicUsize::new(0), Mutex::new(0), Mutex::new(Vec::new()));
    let begun = Instant::now();
    let work = || {
        while let Some(zone) = zones.get(next.fetch_add(1, Ordering::Relaxed)) {
            for said in oracle::schedules(zone.parse().unwrap()) {
                match said.check(from, until) {
                    Ok(compared) => *minutes.lock().unwrap() += compared,
                    Err(found) => different.lock().unwrap().push(found),
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let different = different.into_inner().unwrap();
    println!(
        "{}",
        json!({
            "figure": "schedules",
            "goal": "nothing differs",
            "zones": zones.len(),
            "minutes": minutes.into_inner().unwrap(),
            "different": different,
            "seconds": begun.elapsed().as_secs(),
        })
    );
    different.is_empty()
}
