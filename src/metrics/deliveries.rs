//! What was delivered.

use super::family::Families;
use crate::notifications::Counts;

pub(super) fn collect(families: &mut Families, counts: &Counts) {
    families.collect(&counts.attempts);
    families.collect(&counts.unreadable_channels);
    families.collect(&counts.key_readable);
}
