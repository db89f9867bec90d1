//! What streams cost: many subscribers, slow ones, and those who are far behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::{Buf, Bytes};
use prost::Message;
use sea_orm::{ConnectionTrait, Database, DbBackend};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinHandle, time::sleep};
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use watchpost::pb::{self, Topic, WatchStart, event_service_client::EventServiceClient, watch_response::Update};

use crate::{
    latencies, per_second,
    server::{Server, resident_mib},
};

/// How many streams share a connection.
const STREAMS: usize = 100;

/// Messages as the bytes that they are: what a client does with them is not measured.
struct Raw;

impl Codec for Raw {
    type Encode = pb::WatchRequest;
    type Decode = Bytes;
    type Encoder = <ProstCodec<pb::WatchRequest, pb::WatchResponse> as Codec>::Encoder;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<pb::WatchRequest, pb::WatchResponse>::default().encoder()
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

fn events(start: WatchStart) -> pb::WatchRequest {
    pb::WatchRequest {
        topics: vec![Topic::Events.into()],
        start: start.into(),
        heartbeat_interval: Some(prost_types::Duration { seconds: 300, nanos: 0 }),
        ..Default::default()
    }
}

async fn connect(server: &Server) -> Channel {
    Endpoint::from_shared(server.address.clone())
        .unwrap()
        .initial_connection_window_size(16 << 20)
        .connect()
        .await
        .unwrap()
}

async fn watch(channel: &Channel, request: pb::WatchRequest) -> Streaming<Bytes> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/watchpost.v1.MonitorService/Watch");
    let response = grpc.server_streaming(tonic::Request::new(request), path, Raw);
    let mut messages = response.await.unwrap().into_inner();
    messages.message().await.unwrap();
    messages
}

/// What subscribers count.
#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
    stop: AtomicBool,
}

/// Subscribers that count what they are sent, of which every hundredth measures how late it is.
async fn subscribe(server: &Server, subscribers: usize, counts: &Arc<Counts>) -> Vec<JoinHandle<Vec<Duration>>> {
    let mut tasks = Vec::with_capacity(subscribers);
    let mut channel = connect(server).await;
    for at in 0..subscribers {
        if at % STREAMS == 0 {
            channel = connect(server).await;
        }
        let mut messages = watch(&channel, events(WatchStart::Now)).await;
        let counts = counts.clone();
        // A prime, so that those who measure are on all connections.
        let measures = at % 97 == 0;
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while let Ok(Some(message)) = messages.message().await {
                counts.delivered.fetch_add(1, Ordering::Relaxed);
                if measures && let Some(age) = age(message) {
                    times.push(age);
                }
                if counts.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            times
        }));
    }
    tasks
}

/// How long ago the event of a message was sent to the server.
fn age(message: Bytes) -> Option<Duration> {
    let response = pb::WatchResponse::decode(message).unwrap();
    let Some(Update::Event(change)) = response.update else {
        return None;
    };
    let sent: u64 = change.event?.summary?.parse().ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().checked_sub(Duration::from_micros(sent))
}

fn event() -> pb::IngestEventRequest {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let event = pb::Event {
        camera_id: "streams".into(),
        summary: Some(now.unwrap().as_micros().to_string()),
        ..Default::default()
    };
    pb::IngestEventRequest { event: Some(event), ..Default::default() }
}

/// A camera that no rule listens to, so that an event is one change.
pub async fn prepare(server: &Server) {
    let camera = pb::Camera { id: "streams".into(), name: "streams".into(), ..Default::default() };
    let request = pb::CreateCameraRequest { camera: Some(camera) };
    let channel = server.connect().await;
    pb::camera_service_client::CameraServiceClient::new(channel).create_camera(request).await.unwrap();
}

/// Writes so many events a second. Returns how many.
async fn write(server: &Server, rate: f64, time: Duration) -> u64 {
    let events = EventServiceClient::new(server.connect().await);
    let in_flight = Arc::new(Semaphore::new(64));
    let (begun, mut written) = (Instant::now(), 0_u32);
    while begun.elapsed() < time {
        let next = begun + Duration::from_secs_f64(f64::from(written) / rate);
        tokio::time::sleep_until(next.into()).await;
        written += 1;
        let permit = in_flight.clone().acquire_owned().await.unwrap();
        let mut events = events.clone();
        tokio::spawn(async move {
            events.ingest_event(event()).await.unwrap();
            drop(permit);
        });
    }
    let _ = in_flight.acquire_many(64).await.unwrap();
    written.into()
}

/// Waits until everything is delivered. Returns how much is not.
async fn settle(counts: &Counts, expected: u64) -> u64 {
    for _ in 0..1_000 {
        if counts.delivered.load(Ordering::Relaxed) >= expected {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    expected.saturating_sub(counts.delivered.load(Ordering::Relaxed))
}

/// Many subscribers, of which each is sent every change.
pub async fn fan_out(server: &Server, figure: &str, goal: &str, subscribers: usize, rate: f64, seconds: u64) {
    let counts = Arc::new(Counts::default());
    let before = resident_mib(server);
    let tasks = subscribe(server, subscribers, &counts).await;
    sleep(Duration::from_secs(2)).await;
    let idle = resident_mib(server) - before;
    let begun = Instant::now();
    let written = write(server, rate, Duration::from_secs(seconds)).await;
    let expected = written * subscribers as u64;
    let missing = settle(&counts, expected).await;
    let time = begun.elapsed();
    let delivered = counts.delivered.load(Ordering::Relaxed);
    let mut values = measured(server, &counts, tasks).await;
    values["subscribers"] = subscribers.into();
    values["changes"] = written.into();
    values["delivered_per_second"] = per_second(usize::try_from(delivered).unwrap(), time).into();
    values["missing"] = missing.into();
    values["idle_kib_per_subscriber"] = kib_each(idle, subscribers).into();
    server.report(figure, goal, &values);
}

#[allow(clippy::cast_precision_loss)]
fn kib_each(mib: f64, subscribers: usize) -> f64 {
    (mib * 1024.0 / subscribers as f64 * 10.0).round() / 10.0
}

/// One of a hundred subscribers stops reading, and reads again later.
pub async fn slow_reader(server: &Server, seconds: u64) {
    const RATE: f64 = 100.0;
    // More than the server shares in memory, so that what it shares does not grow any more.
    const SHARED: u64 = 9_000;
    let time = Duration::from_secs(seconds);
    let counts = Arc::new(Counts::default());
    let tasks = subscribe(server, 99, &counts).await;
    let mut filled = 0;
    while filled < SHARED {
        filled += write(server, 1e9, Duration::from_secs(1)).await;
    }
    settle(&counts, filled * 99).await;
    measured(server, &counts, tasks).await;

    let counts = Arc::new(Counts::default());
    let tasks = subscribe(server, 99, &counts).await;
    // As long as with it, for the database's caches grow with what is written.
    write(server, RATE, time).await;
    let without = resident_mib(server);
    let quiet = measured(server, &counts, tasks).await;

    let counts = Arc::new(Counts::default());
    let tasks = subscribe(server, 99, &counts).await;
    // A client's usual window would hold all that a short run sends. That of the connection stays: h2
    // measures by it how many small frames it lets pile up before it gives the connection up.
    let endpoint = Endpoint::from_shared(server.address.clone()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let mut parked = watch(&channel, events(WatchStart::Now)).await;
    let written = write(server, RATE, time).await;
    let with = resident_mib(server);
    let beside = measured(server, &counts, tasks).await;
    let begun = Instant::now();
    for _ in 0..written {
        parked.message().await.unwrap().unwrap();
    }
    let rate = per_second(usize::try_from(written).unwrap(), begun.elapsed());
    let values = json!({
        "seconds": seconds,
        "others_without": quiet,
        "others_with": beside,
        "grown_mib": ((with - without) * 10.0).round() / 10.0,
        "catch_up_per_second": rate,
        "caught_up": written,
    });
    let goal = "others' p99 changes < 5 %, < 2 MiB, catches up at >= 50000/s";
    server.report("slow_reader", goal, &values);
}

/// Ends the subscribers with the next message. Returns how late they have measured to be.
async fn measured(server: &Server, counts: &Arc<Counts>, tasks: Vec<JoinHandle<Vec<Duration>>>) -> serde_json::Value {
    counts.stop.store(true, Ordering::Relaxed);
    write(server, 1.0, Duration::from_millis(1)).await;
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    latencies(times)
}

/// One subscriber goes on from an old cursor, many changes behind.
pub async fn catch_up(server: &Server, changes: u64) {
    let channel = connect(server).await;
    let mut from = watch(&channel, events(WatchStart::Now)).await;
    EventServiceClient::new(server.connect().await).ingest_event(event()).await.unwrap();
    let first = pb::WatchResponse::decode(from.message().await.unwrap().unwrap()).unwrap();
    drop(from);
    copy_the_last_change(server, changes).await;
    let request =
        pb::WatchRequest { cursor: first.cursor, start: WatchStart::Unspecified.into(), ..events(WatchStart::Now) };
    let mut rates = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        let mut messages = watch(&channel, request.clone()).await;
        for _ in 0..changes {
            messages.message().await.unwrap().unwrap();
        }
        rates.push(per_second(usize::try_from(changes).unwrap(), begun.elapsed()));
    }
    rates.sort_by(f64::total_cmp);
    let values = json!({ "changes": changes, "changes_per_second": rates[1], "runs": rates });
    server.report("catch_up", ">= 100000 changes/s", &values);
}

/// Fills the feed, as fast as the database can.
async fn copy_the_last_change(server: &Server, copies: u64) {
    let url = server.url.clone().unwrap_or_else(|| {
        let path = server.folder.path().join("watchpost.db");
        format!("sqlite://{}", path.display())
    });
    let db = Box::pin(Database::connect(url)).await.unwrap();
    let numbers = if db.get_database_backend() == DbBackend::Postgres {
        format!("generate_series(1, {copies})")
    } else {
        format!(
            "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {copies}) \
             SELECT i FROM n)"
        )
    };
    // As if every one had been committed by itself.
    let commit = if db.get_database_backend() == DbBackend::Postgres { "NULL" } else { "commit_seq + numbers.i" };
    let sql = format!(
        "INSERT INTO changes (topic, key, message, created_at, commit_seq) \
         SELECT topic, key, message, created_at, {commit} \
         FROM (SELECT * FROM changes ORDER BY seq DESC LIMIT 1) AS last, {numbers} AS numbers"
    );
    db.execute_unprepared(&sql).await.unwrap();
    if db.get_database_backend() == DbBackend::Postgres {
        db.execute_unprepared("ANALYZE changes").await.unwrap();
    }
    db.close().await.unwrap();
}
