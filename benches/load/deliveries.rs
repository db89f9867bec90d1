//! Webhooks: how soon and how fast they are delivered, and that none is forgotten when servers are killed.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tonic::transport::Channel;
use watchpost::pb::{
    self, DeliveryStatus, alert_rule_service_client::AlertRuleServiceClient,
    camera_service_client::CameraServiceClient, delivery_service_client::DeliveryServiceClient,
    event_service_client::EventServiceClient, notification_channel::Kind,
    notification_channel_service_client::NotificationChannelServiceClient,
};

use crate::{per_second, server, server::Server};

/// How many alerts are timed.
const TIMED: usize = 500;

/// How many deliveries wait when the channel is enabled.
const WAITING: usize = 20_000;

const CLIENTS: usize = 16;

/// How long everything may take that is waited for.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a receiver was sent.
#[derive(Default)]
struct Posts {
    /// When each alert first came.
    first: HashMap<String, SystemTime>,
    /// The ids under which each alert came.
    ids: HashMap<String, HashSet<String>>,
    last: Option<Instant>,
}

/// A receiver that answers at once.
struct Receiver {
    address: SocketAddr,
    posts: Arc<Mutex<Posts>>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let posts = Arc::new(Mutex::new(Posts::default()));
        let shared = posts.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let posts = shared.clone();
                let service = service_fn(move |request| take(request, posts.clone()));
                // A server that was killed hangs up.
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, posts }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn alerts(&self) -> usize {
        self.posts.lock().unwrap().first.len()
    }
}

async fn take(request: Request<Incoming>, posts: Arc<Mutex<Posts>>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let now = SystemTime::now();
    let id = request.headers()["webhook-id"].to_str().unwrap().to_string();
    // One that was cut off has not come.
    if let Ok(body) = request.into_body().collect().await {
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        let alert_id = body["data"]["alert"]["id"].as_str().unwrap().to_string();
        let mut posts = posts.lock().unwrap();
        posts.ids.entry(alert_id.clone()).or_default().insert(id);
        posts.first.entry(alert_id).or_insert(now);
        posts.last = Some(Instant::now());
    }
    let answer = Response::builder().status(204);
    Ok(answer.body(Empty::new()).unwrap())
}

/// A camera, a channel to the receiver, and a rule that tells it of everything.
async fn prepare(channel: Channel, url: String, enabled: bool) -> pb::NotificationChannel {
    crate::create_camera(&mut CameraServiceClient::new(channel.clone())).await;
    let webhook = pb::WebhookChannel {
        url,
        signing_secrets: vec!["whsec_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB".into()],
        timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let ops = pb::NotificationChannel {
        name: "ops".into(),
        enabled: Some(enabled),
        kind: Some(Kind::Webhook(webhook)),
        ..Default::default()
    };
    let request = pb::CreateNotificationChannelRequest { notification_channel: Some(ops) };
    let mut channels = NotificationChannelServiceClient::new(channel.clone());
    let created = channels.create_notification_channel(request).await;
    let rule = pb::AlertRule {
        name: "everything".into(),
        cooldown: Some(prost_types::Duration::default()),
        channels: vec!["ops".into()],
        ..Default::default()
    };
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
    let mut rules = AlertRuleServiceClient::new(channel);
    rules.create_alert_rule(request).await.unwrap();
    created.unwrap().into_inner()
}

/// How long after an alert was raised, which is before its commit, its webhook is there, on an idle system.
pub async fn latency(url: Option<String>) {
    let receiver = Receiver::start().await;
    let server = Server::start(url);
    server.serving().await;
    let channel = server.connect().await;
    prepare(channel.clone(), receiver.url(), true).await;
    let mut events = EventServiceClient::new(channel);
    let mut times = Vec::with_capacity(TIMED);
    for number in 0..TIMED {
        let answer = events.ingest_event(crate::request()).await.unwrap();
        let alert = &answer.get_ref().alerts[0];
        while receiver.alerts() <= number {
            sleep(Duration::from_micros(200)).await;
        }
        let came = receiver.posts.lock().unwrap().first[&alert.id];
        let raised = SystemTime::try_from(alert.created_at.unwrap()).unwrap();
        times.push(came.duration_since(raised).unwrap_or_default());
        sleep(Duration::from_millis(5)).await;
    }
    server.report("delivery_latency", "p99 <= 50 ms", &crate::latencies(times));
}

/// Deliveries a second to one receiver, once its channel is enabled.
pub async fn rate(url: Option<String>) {
    let receiver = Receiver::start().await;
    let server = Server::start(url);
    server.serving().await;
    let channel = server.connect().await;
    let ops = prepare(channel.clone(), receiver.url(), false).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut events = EventServiceClient::new(server.connect().await);
        clients.push(tokio::spawn(async move {
            for _ in 0..WAITING / CLIENTS {
                events.ingest_event(crate::request()).await.unwrap();
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    let begun = Instant::now();
    let request = pb::UpdateNotificationChannelRequest {
        notification_channel: Some(pb::NotificationChannel { id: ops.id, enabled: Some(true), ..Default::default() }),
        ..Default::default()
    };
    let mut channels = NotificationChannelServiceClient::new(channel.clone());
    channels.update_notification_channel(request).await.unwrap();
    drained(channel).await;
    let written = begun.elapsed();
    let came = receiver.posts.lock().unwrap().last.unwrap() - begun;
    assert_eq!(receiver.alerts(), WAITING);
    let values = json!({
        "deliveries": WAITING,
        "per_second": per_second(WAITING, came),
        "written_down_per_second": per_second(WAITING, written),
    });
    server.report("deliveries", ">= 2000/s", &values);
}

/// Waits until nothing is queued.
async fn drained(channel: Channel) {
    let mut deliveries = DeliveryServiceClient::new(channel);
    let waiting = async {
        loop {
            let request = pb::ListDeliveriesRequest {
                page_size: 1,
                filter: Some(pb::DeliveryFilter {
                    statuses: vec![DeliveryStatus::Queued.into()],
                    ..Default::default()
                }),
                ..Default::default()
            };
            let page = deliveries.list_deliveries(request).await.unwrap();
            if page.get_ref().deliveries.is_empty() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("all is delivered");
}

/// Kills the server at random while it delivers. Returns whether every alert that was answered came at least
/// once, each always by one id of its own, and the ledger says so.
pub async fn kills(url: Option<String>, cycles: u32, seed: u64) -> bool {
    let mut random = fastrand::Rng::with_seed(seed);
    let receiver = Receiver::start().await;
    let mut server = Server::start(url);
    server.serving().await;
    prepare(server.connect().await, receiver.url(), true).await;
    let raised = Arc::new(Mutex::new(HashSet::new()));
    for cycle in 0..cycles {
        if cycle > 0 {
            (server.child, server.address) = server::spawn(&server.folder, server.url.as_ref());
            server.serving().await;
        }
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut events = EventServiceClient::new(server.connect().await);
            let raised = raised.clone();
            clients.push(tokio::spawn(async move {
                while let Ok(answer) = events.ingest_event(crate::request()).await {
                    let ids = answer.into_inner().alerts.into_iter().map(|alert| alert.id);
                    raised.lock().unwrap().extend(ids);
                }
            }));
        }
        sleep(Duration::from_micros(random.u64(1_000..150_000))).await;
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        for client in clients {
            client.await.unwrap();
        }
    }
    (server.child, server.address) = server::spawn(&server.folder, server.url.as_ref());
    server.serving().await;
    drained(server.connect().await).await;

    let posts = receiver.posts.lock().unwrap();
    let raised = raised.lock().unwrap();
    let forgotten = raised.iter().filter(|id| !posts.ids.contains_key(*id)).count();
    let renamed = posts.ids.values().filter(|ids| ids.len() > 1).count();
    let mut ids: HashSet<&String> = HashSet::new();
    let shared = posts.ids.values().flatten().filter(|id| !ids.insert(id)).count();
    let kept = forgotten == 0 && renamed == 0 && shared == 0;
    let values = json!({
        "kills": cycles,
        "seed": seed,
        "alerts_answered": raised.len(),
        "alerts_delivered": posts.ids.len(),
        "forgotten": forgotten,
        "with_several_ids": renamed,
        "ids_of_several": shared,
        "kept": kept,
    });
    server.report("delivery_kills", "every delivery at least once, by its own id", &values);
    kept
}
