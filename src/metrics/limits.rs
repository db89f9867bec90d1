//! Metrics of the limits of calls, of unfinished requests, and of snapshots.

use prometheus::proto::MetricType::{self, COUNTER, GAUGE};

use super::{
    Limits,
    family::{Families, count},
};

pub(super) fn collect(families: &mut Families, limits: &Limits) {
    let (calls, unfinished) = (&limits.calls, &limits.unfinished);
    let (bytes, limit_bytes) = unfinished.memory();
    let (snapshot_bytes, snapshot_limit_bytes) = limits.snapshots.memory();
    let figures: [(&str, &str, MetricType, u64); 11] = [
        ("watchpost_calls", "Calls that are under way, open streams included.", GAUGE, calls.open() as u64),
        (
            "watchpost_calls_max",
            "Calls that may be under way; further calls are refused with TOO_MANY_CALLS.",
            GAUGE,
            calls.limit() as u64,
        ),
        (
            "watchpost_calls_refused_total",
            "Calls that were refused because as many as may be were under way.",
            COUNTER,
            calls.refused(),
        ),
        (
            "watchpost_connection_calls_max",
            "Calls that may be under way on one connection.",
            GAUGE,
            limits.calls_per_connection.into(),
        ),
        ("watchpost_unfinished_requests", "Requests that have not arrived whole.", GAUGE, unfinished.requests() as u64),
        ("watchpost_unfinished_bytes", "Received bytes of requests that have not arrived whole.", GAUGE, bytes),
        (
            "watchpost_unfinished_limit_bytes",
            "Limit of received bytes of requests that have not arrived whole; beyond the limit, some of these requests are ended.",
            GAUGE,
            limit_bytes,
        ),
        (
            "watchpost_unfinished_timed_out_total",
            "Requests that did not arrive whole in time.",
            COUNTER,
            unfinished.timed_out(),
        ),
        (
            "watchpost_unfinished_evicted_total",
            "Requests that were ended before they had arrived whole because others needed their memory.",
            COUNTER,
            unfinished.evicted(),
        ),
        ("watchpost_snapshot_bytes", "Bytes of the snapshots that watches are reading.", GAUGE, snapshot_bytes),
        (
            "watchpost_snapshot_limit_bytes",
            "Bytes that snapshots may take; further ones are refused with SERVER_BUSY.",
            GAUGE,
            snapshot_limit_bytes,
        ),
    ];
    for (name, help, kind, value) in figures {
        families.add_value(name, help, kind, count(value));
    }
}
