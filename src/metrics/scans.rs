//! Metrics of calls that scan the database in turns.

use prometheus::proto::MetricType;

use super::family::{Families, count};
use crate::db::scans::ScanCounts;

pub(super) fn collect(families: &mut Families, scans: ScanCounts) {
    families.add_value(
        "watchpost_scan_connections",
        "Connections to the database for calls that search it.",
        MetricType::GAUGE,
        count(scans.connections as u64),
    );
    families.add_value(
        "watchpost_scans_running",
        "Connections of watchpost_scan_connections that are in use.",
        MetricType::GAUGE,
        count(scans.running as u64),
    );
    families.add_value(
        "watchpost_scans_waiting",
        "Calls that wait for their turn to search the database.",
        MetricType::GAUGE,
        count(scans.waiting as u64),
    );
    families.add_value(
        "watchpost_scans_refused_total",
        "Calls that were refused with SERVER_BUSY because their turn to search the database did not come.",
        MetricType::COUNTER,
        count(scans.refused),
    );
    families.add_value(
        "watchpost_scan_queries_stopped_total",
        "Queries that were stopped within the database because their call was given up or past its deadline.",
        MetricType::COUNTER,
        count(scans.stopped),
    );
}
