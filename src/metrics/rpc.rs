//! Metrics of calls, with the names and labels of go-grpc-prometheus, for which dashboards exist.

use prometheus::{core::Metric, proto::MetricType};
use tonic::Code;

use super::family::{Families, Labels, count, pairs};
use crate::rpc::{
    calls::{Calls, Method},
    limits::admission::Admission,
};

pub(super) fn collect(families: &mut Families, calls: &Calls) {
    let methods = calls.methods();
    families.add(
        "grpc_server_started_total",
        "Calls that began.",
        MetricType::COUNTER,
        methods.iter().map(|method| (labels(method), count(method.started()))),
    );
    families.add(
        "grpc_server_handled_total",
        "Calls that ended, by status code.",
        MetricType::COUNTER,
        methods.iter().flat_map(|method| {
            method.ended().map(|(code, calls)| {
                let mut labels = labels(method);
                labels.push(("grpc_code", code_label(code).into()));
                (labels, count(calls))
            })
        }),
    );
    let seconds = methods.iter().map(|method| {
        let mut metric = method.seconds.metric();
        metric.set_label(pairs(labels(method)));
        metric
    });
    families.add_metrics(
        "grpc_server_handling_seconds",
        "Duration of calls, in seconds; of a stream, the time it was open.",
        MetricType::HISTOGRAM,
        seconds.collect(),
    );
}

pub(super) fn collect_memory(families: &mut Families, admission: &Admission) {
    let (taken, limit) = admission.memory();
    families.add_value(
        "watchpost_request_memory_bytes",
        "Memory that requests under way take once they are decoded.",
        MetricType::GAUGE,
        count(taken),
    );
    families.add_value(
        "watchpost_request_memory_limit_bytes",
        "Limit of the memory of decoded requests under way; further requests are refused with SERVER_BUSY.",
        MetricType::GAUGE,
        count(limit),
    );
}

fn labels(method: &Method) -> Labels {
    let name = |name: &str| if name.is_empty() { "unknown" } else { name }.to_string();
    vec![
        ("grpc_type", method.kind.into()),
        ("grpc_service", name(&method.service)),
        ("grpc_method", name(&method.name)),
    ]
}

/// Code as other implementations of gRPC write it.
fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
