//! Figures of single calls, and of a server that nobody calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use watchpost::pb::{
    self, alert_service_client::AlertServiceClient, event_service_client::EventServiceClient,
    monitor_service_client::MonitorServiceClient, watch_response::Update,
};

use crate::{
    latencies, millis, per_second, request,
    server::{Server, resident_mib, spawn, stop},
};

pub const INGESTS_IN_FLIGHT: usize = 16;
const GETS_IN_FLIGHT: usize = 64;
const CONNECTIONS: usize = 4;
const STARTS: usize = 10;
const ALERTS: usize = 500;

/// From the start of the process to SERVING, on a database that is there.
pub async fn start(server: &mut Server) {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        stop(&mut server.child);
        let begun = Instant::now();
        (server.child, server.address) = spawn(&server.folder, server.url.as_ref());
        server.serving().await;
        times.push(begun.elapsed());
    }
    times.sort();
    let ms = |at: usize| millis(times[at]);
    server.report("start_to_serving", "<= 150 ms", &json!({ "p50_ms": ms(STARTS / 2), "max_ms": ms(STARTS - 1) }));
}

/// The resident memory of a server that nobody talks to.
pub async fn idle_memory(server: &Server) {
    sleep(Duration::from_secs(3)).await;
    let rss = resident_mib(server);
    server.report("idle_memory", "<= 25 MiB", &json!({ "resident_mib": rss }));
}

/// Events a second from clients that each wait for their answer.
pub async fn ingest(server: &Server, seconds: u64) {
    let call = |channel: Channel, _| async move {
        let mut events = EventServiceClient::new(channel);
        let response = events.ingest_event(request()).await.unwrap().into_inner();
        assert_eq!(response.alerts.len(), 1);
    };
    let mut values = closed_loop(server, INGESTS_IN_FLIGHT, seconds, call).await;
    values["resident_mib"] = resident_mib(server).into();
    server.report("ingest", ">= 2500 events/s", &values);
}

/// How long after an alert was raised, which is before its commit, a subscriber has it, on an idle system.
pub async fn alert_latency(server: &Server) {
    let channel = server.connect().await;
    let watch = pb::WatchRequest { topics: vec![pb::Topic::Alerts.into()], ..Default::default() };
    let mut responses = MonitorServiceClient::new(channel).watch(watch).await.unwrap().into_inner();
    responses.message().await.unwrap();
    let events = EventServiceClient::new(server.connect().await);
    let mut times = Vec::new();
    while times.len() < ALERTS {
        let ingest = tokio::spawn({
            let mut events = events.clone();
            async move { events.ingest_event(request()).await.unwrap() }
        });
        loop {
            let response = responses.message().await.unwrap().unwrap();
            if let Some(Update::Alert(change)) = response.update {
                let raised = SystemTime::try_from(change.alert.unwrap().created_at.unwrap()).unwrap();
                times.push(SystemTime::now().duration_since(raised).unwrap());
                break;
            }
        }
        ingest.await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    server.report("raised_to_received", "p50 <= 5 ms, p99 <= 20 ms", &latencies(times));
}

/// Unary calls a second that ask no database: what the transport and this machine allow.
pub async fn health_check(server: &Server, seconds: u64) {
    let call = |channel: Channel, _| {
        let mut health = HealthClient::new(channel);
        async move { drop(health.check(HealthCheckRequest::default()).await.unwrap()) }
    };
    let values = closed_loop(server, GETS_IN_FLIGHT, seconds, call).await;
    server.report("health_check", "none: the floor", &values);
}

/// Unary calls a second for one of a thousand alerts.
pub async fn get_alert(server: &Server, seconds: u64) {
    let channel = server.connect().await;
    let mut events = EventServiceClient::new(channel.clone());
    for _ in 0..ALERTS {
        events.ingest_event(request()).await.unwrap();
    }
    let request = pb::ListAlertsRequest { page_size: 1000, ..Default::default() };
    let alerts = AlertServiceClient::new(channel).list_alerts(request).await.unwrap();
    let ids: Vec<_> = alerts.into_inner().alerts.into_iter().map(|alert| alert.id).collect();
    let ids = Arc::new(ids);
    let call = move |channel: Channel, at: usize| {
        let mut alerts = AlertServiceClient::new(channel);
        let id = ids[at % ids.len()].clone();
        async move { drop(alerts.get_alert(pb::GetAlertRequest { id }).await.unwrap()) }
    };
    let values = closed_loop(server, GETS_IN_FLIGHT, seconds, call).await;
    server.report("get_alert", ">= 40000 calls/s on SQLite", &values);
}

/// Calls a second of so many callers on 4 connections, each of which waits for its answer.
pub async fn closed_loop<F>(
    server: &Server,
    in_flight: usize,
    seconds: u64,
    call: impl Fn(Channel, usize) -> F + Clone + Send + 'static,
) -> serde_json::Value
where
    F: Future<Output = ()> + Send,
{
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for connection in 0..CONNECTIONS {
        let channel = server.connect().await;
        for caller in 0..in_flight / CONNECTIONS {
            let (stop, done, call) = (stop.clone(), done.clone(), call.clone());
            let channel = channel.clone();
            clients.push(tokio::spawn(async move {
                let mut times = Vec::new();
                let mut at = connection * 251 + caller * 17;
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    let begun = Instant::now();
                    call(channel.clone(), at).await;
                    times.push(begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                times
            }));
        }
    }
    sleep(Duration::from_secs(2)).await;
    let (before, begun) = (done.load(Ordering::Relaxed), Instant::now());
    sleep(Duration::from_secs(seconds)).await;
    let rate = per_second(done.load(Ordering::Relaxed) - before, begun.elapsed());
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    let mut values = latencies(times);
    values["per_second"] = rate.into();
    values
}
