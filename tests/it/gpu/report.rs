//! Samples that other hosts report.

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::Timestamp;
use sea_orm::{EntityTrait, PaginatorTrait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use watchpost::{
    entity::{gpu_reporter, gpu_stats, now},
    pb::watch_response::Update,
};

use super::*;
use crate::support::{TestServer, detection, field, reason, topics};

/// One stream of `RecordGpuStats`.
pub(super) struct Reporter {
    send: mpsc::Sender<pb::RecordGpuStatsRequest>,
    answers: Streaming<pb::RecordGpuStatsResponse>,
}

impl Reporter {
    pub(super) async fn open(server: &TestServer) -> Self {
        let (send, batches) = mpsc::channel(1);
        let batches = ReceiverStream::new(batches);
        let answers = server.gpu_stats().record_gpu_stats(batches).await.unwrap();
        let answers = answers.into_inner();
        Self { send, answers }
    }

    /// Sends a batch. Returns the answer: its `sequence`, and whether it had been stored before.
    pub(super) async fn report(&mut self, batch: pb::RecordGpuStatsRequest) -> Result<(i64, bool), Status> {
        self.send.send(batch).await.unwrap();
        let answer = self.answer().await?;
        Ok((answer.sequence, answer.already_stored))
    }

    async fn answer(&mut self) -> Result<pb::RecordGpuStatsResponse, Status> {
        let answer = timeout(PATIENCE, self.answers.message()).await;
        Ok(answer.expect("an answer")?.expect("not the end"))
    }
}

#[on_both]
async fn what_is_reported_is_answered_listed_and_live(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[pb::Topic::GpuStats])).await;
    let mut reporter = Reporter::open(&server).await;
    let start = now() - TimeDelta::minutes(2);
    let at = |seconds| start + TimeDelta::seconds(seconds);
    let mut first = sample("GPU-a", at(10), 50.0);
    first.absent_reasons.insert("fan_speed".into(), AbsentReason::NotSupported.into());
    first.inference_fps = Some(12.5);
    let other = pb::GpuStats { host: Some("attic".into()), ..sample("GPU-b", at(10), 30.0) };
    let mut batch = batch(1, vec![other, first, sample("GPU-a", at(9), 49.0)]);
    batch.driver_version = Some("580.95.05".into());
    assert_eq!(reporter.report(batch).await.unwrap(), (1, false));

    let latest = latest(&server).await;
    let newest: Vec<_> =
        latest.iter().map(|stats| (stats.host.as_deref().unwrap(), stats.temperature.unwrap())).collect();
    assert_eq!(newest, [("attic", 30.0), ("shed", 50.0)]);
    let shed = &latest[1];
    assert_eq!((shed.inference_fps, shed.recorded_at), (Some(12.5), Some(proto(at(10)))));
    let why = |column: &str| AbsentReason::try_from(shed.absent_reasons[column]).unwrap();
    assert_eq!(why("fan_speed"), AbsentReason::NotSupported);
    assert_eq!(why("sm_clock"), AbsentReason::NotReported);
    assert_eq!(shed.absent_reasons.len(), 26);
    assert_eq!(
        listed(&server).await,
        [("GPU-a", 50.0), ("GPU-b", 30.0), ("GPU-a", 49.0)].map(|(uuid, temperature)| (uuid.to_string(), temperature))
    );
    let mut pushed = BTreeMap::new();
    while pushed.len() < 2 {
        if let Update::GpuStats(stats) = watch.update().await {
            let reported_fps = stats.gpu_uuid() == "GPU-a";
            assert_eq!(stats.absent_reasons.contains_key("inference_fps"), !reported_fps);
            pushed.insert(stats.gpu_uuid().to_string(), stats.temperature());
        }
    }
    assert_eq!(pushed, [("GPU-a".into(), 50.0), ("GPU-b".into(), 30.0)].into());

    // What comes late is kept, and changes nothing that is newer.
    let mut late = sample("GPU-a", at(0), 20.0);
    late.gpu_index = Some(7);
    assert_eq!(reporter.report(self::batch(2, vec![late])).await.unwrap(), (2, false));
    assert_eq!(listed(&server).await.len(), 4);
    assert_eq!(self::latest(&server).await[1].temperature, Some(50.0));
    let newer = batch_of(3, "GPU-a", at(11), 51.0);
    assert_eq!(reporter.report(newer).await.unwrap(), (3, false));
    match watch.update().await {
        Update::GpuStats(stats) => assert_eq!(stats.temperature, Some(51.0)),
        other => panic!("{other:?}"),
    }

    let gpus = server.gpu_stats().list_gpus(pb::ListGpusRequest {}).await.unwrap();
    let gpus = gpus.into_inner().gpus;
    assert_eq!(gpus.len(), 2);
    assert_eq!((gpus[1].uuid.as_str(), gpus[1].host.as_str()), ("GPU-a", "shed"));
    assert_eq!((gpus[1].gpu_index, gpus[1].name.as_deref()), (Some(0), Some("NVIDIA T4")));
    // The batches that do not say it do not make it unknown.
    assert_eq!(gpus[1].driver_version.as_deref(), Some("580.95.05"));
    assert_eq!(gpus[1].first_seen_at, Some(proto(at(9))));

    // An open stream does not hold up the end of the server, and is told.
    let (stopped, ended) = tokio::join!(server.stop(), reporter.answer());
    let status = ended.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "SHUTTING_DOWN"));
    drop(stopped);
}

#[on_both]
async fn a_batch_that_is_sent_again_is_stored_once(backend: Backend) {
    let server = TestServer::start(backend).await;
    let db = server.database.connect().await;
    let rows = async || gpu_stats::Entity::find().count(&db).await.unwrap();
    let lost = async |id: &str| {
        let row = gpu_reporter::Entity::find_by_id(id).one(&db).await.unwrap().unwrap();
        (row.last_sequence, row.lost, row.host)
    };
    let at = now();
    let five = pb::RecordGpuStatsRequest { lost: 3, ..batch_of(5, "GPU-a", at, 50.0) };
    let mut reporter = Reporter::open(&server).await;
    assert_eq!(reporter.report(five.clone()).await.unwrap(), (5, false));
    assert_eq!(reporter.report(five.clone()).await.unwrap(), (5, true));
    assert_eq!(reporter.report(batch_of(4, "GPU-a", at, 51.0)).await.unwrap(), (4, true));
    let mut again = Reporter::open(&server).await;
    assert_eq!(again.report(five).await.unwrap(), (5, true));
    assert_eq!((rows().await, lost("shed-1").await), (1, (5, 3, "shed".into())));

    let six = pb::RecordGpuStatsRequest { lost: 4, ..batch_of(6, "GPU-a", at, 52.0) };
    let (one, other) = tokio::join!(reporter.report(six.clone()), again.report(six));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.0, other.0), (6, 6));
    assert_ne!(one.1, other.1);
    assert_eq!((rows().await, lost("shed-1").await.1), (2, 7));

    // Another reporter counts for itself. It reads its answers at the end.
    let other = Reporter::open(&server).await;
    for sequence in 1..=20 {
        let batch = batch_of(sequence, "GPU-b", at + TimeDelta::milliseconds(sequence), 53.0);
        let batch = pb::RecordGpuStatsRequest { reporter_id: "attic-1".into(), ..batch };
        other.send.send(batch).await.unwrap();
    }
    let Reporter { send, mut answers } = other;
    drop(send);
    let mut answered = Vec::new();
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
        answered.push(answer.sequence);
    }
    assert_eq!(answered, (1..=20).collect::<Vec<_>>());
    assert_eq!((rows().await, lost("attic-1").await.0), (22, 20));
    db.close().await.unwrap();
    server.stop().await;
}

#[on_both]
async fn a_bad_field_is_named_and_nothing_of_its_batch_is_stored(backend: Backend) {
    type Bad = (&'static str, fn(&mut pb::RecordGpuStatsRequest));
    let cases: &[Bad] = &[
        ("reporter_id", |batch| batch.reporter_id.clear()),
        ("reporter_id", |batch| batch.reporter_id = "no spaces".into()),
        ("host", |batch| batch.host.clear()),
        ("host", |batch| batch.host = "x".repeat(256)),
        ("sequence", |batch| batch.sequence = 0),
        ("lost", |batch| batch.lost = -1),
        ("driver_version", |batch| batch.driver_version = Some("x".repeat(81))),
        ("gpu_stats", |batch| batch.gpu_stats = vec![batch.gpu_stats[0].clone(); 1001]),
        ("gpu_stats[1].id", |batch| batch.gpu_stats[1].id = Some(1)),
        ("gpu_stats[1].gpu_uuid", |batch| batch.gpu_stats[1].gpu_uuid = None),
        ("gpu_stats[1].gpu_uuid", |batch| batch.gpu_stats[1].gpu_uuid = Some("x".repeat(97))),
        ("gpu_stats[1].recorded_at", |batch| batch.gpu_stats[1].recorded_at = None),
        ("gpu_stats[1].recorded_at", |batch| {
            batch.gpu_stats[1].recorded_at = Some(Timestamp { seconds: -1, nanos: 0 });
        }),
        ("gpu_stats[1].recorded_at", |batch| {
            batch.gpu_stats[1].recorded_at = Some(proto(now() + TimeDelta::minutes(6)));
        }),
        ("gpu_stats[1].temperature", |batch| batch.gpu_stats[1].temperature = Some(f64::NAN)),
        ("gpu_stats[1].gpu_utilization", |batch| batch.gpu_stats[1].gpu_utilization = Some(100.5)),
        ("gpu_stats[1].power_usage", |batch| batch.gpu_stats[1].power_usage = Some(-1.0)),
        ("gpu_stats[1].inference_fps", |batch| batch.gpu_stats[1].inference_fps = Some(f64::INFINITY)),
        ("gpu_stats[1].memory_used", |batch| batch.gpu_stats[1].memory_used = Some(-1)),
        ("gpu_stats[1].memory_used", |batch| {
            batch.gpu_stats[1].memory_used = Some(2);
            batch.gpu_stats[1].memory_total = Some(1);
        }),
        ("gpu_stats[1].pstate", |batch| batch.gpu_stats[1].pstate = Some(16)),
        ("gpu_stats[1].encoder_utilization", |batch| batch.gpu_stats[1].encoder_utilization = Some(101)),
        ("gpu_stats[1].fan_speed", |batch| batch.gpu_stats[1].fan_speed = Some(-1)),
        ("gpu_stats[1].gpu_name", |batch| batch.gpu_stats[1].gpu_name = Some("x".repeat(256))),
        ("gpu_stats[1].host", |batch| batch.gpu_stats[1].host = Some(String::new())),
        ("gpu_stats[1].pci_bus_id", |batch| batch.gpu_stats[1].pci_bus_id = Some("a\0b".into())),
        ("gpu_stats[1].mig_parent_uuid", |batch| batch.gpu_stats[1].mig_parent_uuid = Some("x".repeat(97))),
        ("gpu_stats[1].absent_reasons[temperature]", |batch| absent(batch, "temperature", 1)),
        ("gpu_stats[1].absent_reasons[nonsense]", |batch| absent(batch, "nonsense", 1)),
        ("gpu_stats[1].absent_reasons[fan_speed]", |batch| absent(batch, "fan_speed", 0)),
        ("gpu_stats[1].absent_reasons[fan_speed]", |batch| absent(batch, "fan_speed", 99)),
        ("gpu_events", |batch| batch.gpu_events = vec![event(); 101]),
        ("gpu_events[0].id", |batch| batch.gpu_events[0].id = 1),
        ("gpu_events[0].occurred_at", |batch| batch.gpu_events[0].occurred_at = None),
        ("gpu_events[0].occurred_at", |batch| {
            batch.gpu_events[0].occurred_at = Some(proto(now() + TimeDelta::minutes(6)));
        }),
        ("gpu_events[0].kind", |batch| batch.gpu_events[0].kind = 0),
        ("gpu_events[0].kind", |batch| batch.gpu_events[0].kind = 99),
        ("gpu_events[0].source", |batch| batch.gpu_events[0].source = 0),
        ("gpu_events[0].host", |batch| batch.gpu_events[0].host = " ".into()),
        ("gpu_events[0].gpu_uuid", |batch| batch.gpu_events[0].gpu_uuid = Some("x".repeat(97))),
        ("gpu_events[0].gpu_index", |batch| batch.gpu_events[0].gpu_index = Some(-1)),
        ("gpu_events[0].code", |batch| batch.gpu_events[0].code = Some(-1)),
        ("gpu_events[0].detail", |batch| batch.gpu_events[0].detail = Some("x".repeat(4001))),
        ("gpu_events[0].occurrences", |batch| batch.gpu_events[0].occurrences = -1),
        ("gpu_conditions", |batch| batch.gpu_conditions = vec![condition(); 1001]),
        ("gpu_conditions[0].gpu_uuid", |batch| batch.gpu_conditions[0].gpu_uuid.clear()),
        ("gpu_conditions[0].state", |batch| batch.gpu_conditions[0].state = 0),
        ("gpu_conditions[0].memory_pressure", |batch| {
            batch.gpu_conditions[0].memory_pressure = Some(0);
        }),
    ];
    let server = TestServer::start(backend).await;
    let good = pb::RecordGpuStatsRequest {
        gpu_events: vec![event()],
        gpu_conditions: vec![condition()],
        ..batch(1, vec![sample("GPU-a", now(), 50.0), sample("GPU-b", now(), 50.0)])
    };
    for (name, spoil) in cases {
        let mut bad = good.clone();
        spoil(&mut bad);
        let mut reporter = Reporter::open(&server).await;
        let status = reporter.report(bad).await.expect_err(name);
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, *name));
    }
    let nothing = listed(&server).await;
    assert!(nothing.is_empty(), "{nothing:?}");
    assert!(latest(&server).await.is_empty());
    assert!(told(&server).await.is_empty());

    // What comes before it stays, and what can be mended is taken.
    let mut reporter = Reporter::open(&server).await;
    assert_eq!(reporter.report(good.clone()).await.unwrap(), (1, false));
    let other = pb::RecordGpuStatsRequest { sequence: 2, host: "attic".into(), ..good.clone() };
    assert_eq!(field(&reporter.report(other).await.unwrap_err()), "host");
    let mut reporter = Reporter::open(&server).await;
    let mended = pb::RecordGpuStatsRequest { sequence: 2, ..good };
    assert_eq!(reporter.report(mended).await.unwrap(), (2, false));
    // Later batches need not say again who reports.
    let short = pb::RecordGpuStatsRequest { sequence: 3, ..Default::default() };
    assert_eq!(reporter.report(short).await.unwrap(), (3, false));
    assert_eq!(listed(&server).await.len(), 4);
    // An event that is repeated by accident is stored twice: a batch that is, is not.
    let told = told(&server).await;
    let expected = pb::GpuEvent { id: told[1].id, host: "shed".into(), occurrences: 1, ..event() };
    assert_eq!((told.len(), &told[1]), (2, &expected));
    server.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_refused_as_such() {
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, |settings| {
        settings.max_message_size = 65_536;
    })
    .await;
    let mut reporter = Reporter::open(&server).await;
    let samples = vec![sample(&"x".repeat(96), now(), 50.0); 1000];
    let status = reporter.report(batch(1, samples)).await.unwrap_err();
    assert_eq!((status.code(), &*reason(&status)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    server.stop().await;
}

#[tokio::test]
async fn the_one_gpu_of_the_host_has_the_rate_of_the_detections() {
    for (cards, expected) in
        [(vec![Card::geforce("GPU-0")], Some(0.1)), (vec![Card::geforce("GPU-0"), Card::h200("GPU-1")], None)]
    {
        let fake = FakeNvml::new(&cards);
        let library = fake.library();
        let database = TestDatabase::migrated(Backend::Sqlite).await;
        let server = TestServer::start_with(database, |settings| {
            settings.nvml_library = Some(library);
            settings.gpu_interval = Duration::from_millis(100);
        })
        .await;
        server.camera("door").await;
        let mut watch = server.watch(topics(&[pb::Topic::GpuStats])).await;
        let mut next = async || match watch.update().await {
            Update::GpuStats(stats) => stats,
            other => panic!("{other:?}"),
        };
        let before = next().await;
        assert_eq!(before.inference_fps, None);
        let request = pb::IngestEventRequest {
            request_id: "once".into(),
            ..crate::support::ingest("door", vec![detection("person", 0.9); 6])
        };
        for _ in 0..2 {
            server.events().ingest_event(request.clone()).await.unwrap();
        }
        let ingested = now();
        let after = loop {
            let stats = next().await;
            if stats.recorded_at.unwrap().seconds > ingested.timestamp() {
                break stats;
            }
        };
        assert_eq!(after.inference_fps, expected);
        assert_eq!(after.absent_reasons.contains_key("inference_fps"), expected.is_none());
        server.stop().await;
    }
}

fn sample(uuid: &str, at: DateTime<Utc>, temperature: f64) -> pb::GpuStats {
    pb::GpuStats {
        recorded_at: Some(proto(at)),
        gpu_uuid: Some(uuid.into()),
        gpu_index: Some(0),
        gpu_name: Some("NVIDIA T4".into()),
        temperature: Some(temperature),
        ..Default::default()
    }
}

fn batch(sequence: i64, gpu_stats: Vec<pb::GpuStats>) -> pb::RecordGpuStatsRequest {
    pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence,
        gpu_stats,
        ..Default::default()
    }
}

fn batch_of(sequence: i64, uuid: &str, at: DateTime<Utc>, temperature: f64) -> pb::RecordGpuStatsRequest {
    batch(sequence, vec![sample(uuid, at, temperature)])
}

/// An event that leaves out what it may.
fn event() -> pb::GpuEvent {
    pb::GpuEvent {
        occurred_at: Some(Timestamp { seconds: 1_800_000_000 - 86_400 * 365, nanos: 0 }),
        gpu_uuid: Some("GPU-a".into()),
        kind: pb::GpuEventKind::Xid.into(),
        source: pb::GpuEventSource::KernelLog.into(),
        ..Default::default()
    }
}

fn condition() -> pb::GpuCondition {
    pb::GpuCondition { gpu_uuid: "GPU-a".into(), state: pb::GpuState::Ok.into(), memory_pressure: None }
}

/// All events, newest first.
async fn told(server: &TestServer) -> Vec<pb::GpuEvent> {
    let request = pb::ListGpuEventsRequest::default();
    let listed = server.gpu_stats().list_gpu_events(request).await.unwrap();
    listed.into_inner().gpu_events
}

fn absent(batch: &mut pb::RecordGpuStatsRequest, column: &str, reason: i32) {
    let reasons = &mut batch.gpu_stats[1].absent_reasons;
    reasons.insert(column.into(), reason);
}

fn proto(time: DateTime<Utc>) -> Timestamp {
    watchpost::rpc::time::to_proto(time)
}

async fn latest(server: &TestServer) -> Vec<pb::GpuStats> {
    let request = pb::GetLatestGpuStatsRequest::default();
    let latest = server.gpu_stats().get_latest_gpu_stats(request).await;
    latest.unwrap().into_inner().gpu_stats
}

/// The GPU and the temperature of every sample, newest first.
async fn listed(server: &TestServer) -> Vec<(String, f64)> {
    let request = pb::ListGpuStatsRequest::default();
    let listed = server.gpu_stats().list_gpu_stats(request).await.unwrap();
    let stats = listed.into_inner().gpu_stats.into_iter();
    stats.map(|stats| (stats.gpu_uuid().to_string(), stats.temperature())).collect()
}
