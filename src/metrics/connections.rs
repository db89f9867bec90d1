//! Metrics of the connections of the gRPC listener.

use prometheus::proto::MetricType;

use super::family::{Families, count};
use crate::server::connections::Connections;

pub(super) fn collect(families: &mut Families, connections: &Connections) {
    families.add_value(
        "watchpost_connections",
        "Connections of clients that are open.",
        MetricType::GAUGE,
        count(connections.open() as u64),
    );
    families.add_value(
        "watchpost_connections_max",
        "Connections that may be open.",
        MetricType::GAUGE,
        count(connections.limit() as u64),
    );
    families.add_value(
        "watchpost_connections_refused_total",
        "Connections that were closed at once because as many as may be were open.",
        MetricType::COUNTER,
        count(connections.refused()),
    );
    families.add_value(
        "watchpost_connections_timed_out_total",
        "Connections that were closed because the client did not begin with HTTP/2 in time.",
        MetricType::COUNTER,
        count(connections.timed_out()),
    );
}
