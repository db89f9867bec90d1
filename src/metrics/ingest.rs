//! What was taken in.

use super::family::Families;
use crate::events::Counts;

pub(super) fn collect(families: &mut Families, counts: &Counts) {
    families.collect(&counts.events);
    families.collect(&counts.detections);
    families.collect(&counts.alerts);
    families.collect(&counts.replays);
    families.collect(&counts.batches);
}
