//! Metrics of notification deliveries.

use super::family::Families;
use crate::notifications::Counts;

pub(super) fn collect(families: &mut Families, counts: &Counts) {
    families.add_collector(&counts.attempts);
    families.add_collector(&counts.unreadable_channels);
    families.add_collector(&counts.key_readable);
}
