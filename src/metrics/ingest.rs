//! What was taken in.

use super::family::Families;
use crate::events::IngestMetrics;

pub(super) fn collect(families: &mut Families, counts: &IngestMetrics) {
    families.collect(&counts.events);
    families.collect(&counts.detections);
    families.collect(&counts.alerts);
    families.collect(&counts.replays);
    families.collect(&counts.batches);
}
