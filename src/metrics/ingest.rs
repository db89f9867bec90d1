//! Metrics of ingested events.

use super::family::Families;
use crate::events::IngestMetrics;

pub(super) fn collect(families: &mut Families, counts: &IngestMetrics) {
    families.add_collector(&counts.events);
    families.add_collector(&counts.detections);
    families.add_collector(&counts.alerts);
    families.add_collector(&counts.replays);
    families.add_collector(&counts.batches);
}
