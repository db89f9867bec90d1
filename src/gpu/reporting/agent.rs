//! `watchpost agent`: samples the GPUs of this host, and reports them to a server elsewhere, with what
//! happens to them and how they are.
//!
//! Samples and events wait in queues. What has been sent stays as it is, whatever becomes of the queue and
//! the connection, until the server has said that it is stored: only so can it be sent again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::Uri;
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Endpoint};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::check::MOST_EVENTS;
use crate::{
    entity,
    error::Chain,
    gpu::{
        events,
        health::condition::Conditions,
        hear, launch,
        live::{Condition, LiveGpus},
        store::{
            events::Reported,
            queue::{Queue, Row},
        },
    },
    pb::{self, gpu_stats_service_client::GpuStatsServiceClient},
};

/// How long a sample may wait for others to be reported with.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How large a batch may be, in bytes: no server accepts less than 64 KiB.
const LARGEST_BATCH: usize = 60_000;

/// How much of that events and conditions may take each.
const LARGEST_PART: usize = 20_000;

/// How many samples a server accepts at a time.
const MOST: usize = 1_000;

/// How long to wait for a connection, and for an answer: longer than the server waits for its
/// database.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// When to ask a silent connection whether it is alive, and how long to wait for that.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Time after which a GPU is reported again that another host reports.
const CLAIM_EVERY: Duration = Duration::from_secs(30);

/// The pauses between attempts: the first, the longest, and the longest at the end.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_LAST_PAUSE: Duration = Duration::from_millis(500);

/// What to report, and where.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to sample.
    pub gpus: crate::gpu::Settings,
    /// The server to report to.
    pub server: Uri,
    /// How many samples are kept while it is away, beside those on their way.
    pub buffer: usize,
    /// How long the last samples may take at shutdown.
    pub grace: Duration,
}

/// One reporter, from its start to its end.
struct Agent {
    endpoint: Endpoint,
    queue: Arc<Queue>,
    events: Arc<events::Queue>,
    conditions: Arc<Conditions>,
    /// How the server was told that the GPUs are.
    reported: Reported,
    reporter_id: String,
    host: String,
    /// The number of the last batch.
    sequence: i64,
    /// What has been sent and not yet been answered.
    batch: Option<pb::RecordGpuStatsRequest>,
    /// GPUs that another host reports, by UUID, and when to report them again.
    claimed: HashMap<String, Instant>,
    /// How many samples were lost since that was made.
    lost: u64,
    next_report: Instant,
    /// Whether the server has answered since the last failure.
    answered: bool,
    /// Since when it has not.
    away: Option<Instant>,
    /// Set once there is nothing more to come.
    draining: CancellationToken,
}

/// Samples and reports until `shutdown`, and then what is left, if the server takes it in time.
pub async fn run(settings: Settings, shutdown: CancellationToken) {
    let (host, server) = (settings.gpus.host.clone(), settings.server.clone());
    tracing::info!("reporting the GPUs of {host} to {server}");
    let queue = Arc::new(Queue::of(settings.buffer));
    let live = LiveGpus::default();
    let events = Arc::new(events::Queue::default());
    let conditions = Conditions::new(live.clone(), events.clone(), HashMap::new());
    let happening = (Arc::new(conditions), events);
    let gpus = settings.gpus;
    let (samplers, found) = launch(gpus, live, queue.clone(), happening.clone(), |_| {});
    let draining = CancellationToken::new();
    let mut agent = Agent::new(host, settings.server, queue, happening, draining.clone());
    let mut reporting = Box::pin(agent.report());
    let told = async {
        tracing::info!("{}", hear(found).await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // Not before the end.
        () = &mut reporting => {}
        () = told => {}
        () = shutdown.cancelled() => {}
    }
    tracing::info!("stopping");
    samplers.stop.set();
    draining.cancel();
    let reported = timeout(settings.grace, &mut reporting).await.is_ok();
    drop(reporting);
    if reported {
        tracing::info!("stopped; all samples are reported");
    } else {
        let (lost, lost_events) = (agent.waiting(), agent.waiting_events());
        tracing::warn!(
            lost,
            lost_events,
            "stopped; the last GPU samples could not be reported"
        );
    }
}

impl Agent {
    fn new(
        host: String,
        server: Uri,
        queue: Arc<Queue>,
        (conditions, events): (Arc<Conditions>, Arc<events::Queue>),
        draining: CancellationToken,
    ) -> Self {
        let (ask_after, answer_within) = KEEPALIVE;
        let endpoint = Endpoint::from(server)
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(ask_after)
            .keep_alive_timeout(answer_within)
            .keep_alive_while_idle(true);
        Self {
            endpoint,
            queue,
            events,
            conditions,
            reported: Reported::default(),
            // Of its own, since the count begins anew.
            reporter_id: Uuid::now_v7().to_string(),
            host,
            sequence: 0,
            batch: None,
            claimed: HashMap::new(),
            lost: 0,
            next_report: Instant::now(),
            answered: false,
            away: None,
            draining,
        }
    }

    /// Reports until all is drained, on one connection after the other.
    async fn report(&mut self) {
        let mut pause = FIRST_PAUSE;
        while let Err(status) = self.connected().await {
            if std::mem::take(&mut self.answered) {
                pause = FIRST_PAUSE;
            }
            self.fail(&status);
            // Agents that lost one server do not come back all at once.
            let random = f64::from(Uuid::now_v7().as_bytes()[15]) / 255.0;
            let some = pause.mul_f64(0.5 + random / 2.0);
            if self.draining.is_cancelled() {
                sleep(some.min(LONGEST_LAST_PAUSE)).await;
            } else {
                tokio::select! {
                    () = sleep(some) => {}
                    () = self.draining.cancelled() => {}
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Reports on one connection, until all is drained or it fails.
    async fn connected(&mut self) -> Result<(), Status> {
        let channel = self.endpoint.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(Chain(&error).to_string()))?;
        let (send, batches) = mpsc::channel(1);
        let mut answers = GpuStatsServiceClient::new(channel)
            .record_gpu_stats(ReceiverStream::new(batches))
            .await?
            .into_inner();
        loop {
            if self.batch.is_none() {
                self.batch = self.next_batch().await;
            }
            let Some(batch) = self.batch.clone() else {
                return Ok(());
            };
            let sequence = batch.sequence;
            // If nobody takes it, the answer says why.
            let _ = send.send(batch).await;
            let answer = timeout(ANSWER_WITHIN, answers.message()).await;
            let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??;
            match answer {
                Some(answer) if answer.sequence == sequence => self.succeed(),
                Some(_) => return Err(Status::internal("the answer to another batch")),
                None => return Err(Status::unavailable("the server has ended the stream")),
            }
        }
    }

    /// The next batch when it is time for one. Nothing if all is drained.
    async fn next_batch(&mut self) -> Option<pb::RecordGpuStatsRequest> {
        loop {
            tokio::select! {
                () = sleep_until(self.next_report) => {}
                () = self.queue.filled() => {}
                () = self.events.filled() => {}
                () = self.draining.cancelled() => {}
            }
            let now = Instant::now();
            self.claimed.retain(|_, until| *until > now);
            let (gpu_events, gpu_conditions) = (self.take_events(), self.take_conditions());
            let parts = gpu_events.iter().map(Message::encoded_len);
            let parts = parts.chain(gpu_conditions.iter().map(Message::encoded_len));
            // With the key and the length that come before each.
            let mut bytes: usize = parts.map(|part| part + 4).sum();
            let mut samples = 0;
            let fits = |row: &Row| {
                bytes += row.reading.stats.encoded_len() + 4;
                samples += 1;
                samples == 1 || bytes <= LARGEST_BATCH && samples <= MOST
            };
            let (mut rows, dropped) = self.queue.take(fits);
            rows.retain(|row| !self.claimed.contains_key(&row.gpu.uuid));
            self.lost += dropped;
            let rest = self.queue.len();
            self.next_report = Instant::now();
            if rest == 0 {
                self.next_report += REPORT_EVERY;
            }
            let nothing = rows.is_empty() && gpu_events.is_empty() && gpu_conditions.is_empty();
            if !nothing || self.lost > 0 {
                return Some(pb::RecordGpuStatsRequest {
                    gpu_events,
                    gpu_conditions,
                    ..self.batch_of(&rows)
                });
            }
            if self.draining.is_cancelled() {
                return None;
            }
        }
    }

    /// Takes the oldest events out.
    fn take_events(&self) -> Vec<pb::GpuEvent> {
        let draining = self.draining.is_cancelled();
        self.events
            .settle((!draining).then(|| Instant::now().into_std()));
        let events = self.events.first(MOST_EVENTS);
        let mut bytes = 0;
        let messages = events
            .iter()
            .map(|event| pb::GpuEvent::from(event.fact(&self.host)));
        let messages: Vec<_> = messages
            .take_while(|event| {
                let first = bytes == 0;
                bytes += event.encoded_len() + 4;
                first || bytes <= LARGEST_PART
            })
            .collect();
        self.events.remove(messages.len());
        messages
    }

    /// How those GPUs are of which the server does not know it.
    fn take_conditions(&mut self) -> Vec<pb::GpuCondition> {
        let now = entity::now();
        let mut news = self.reported.news(self.conditions.told(), now);
        news.retain(|(uuid, _)| !self.claimed.contains_key(uuid));
        news.truncate(LARGEST_PART / 128);
        let conditions = news.iter().map(message).collect();
        self.reported.remember(news, now);
        conditions
    }

    fn batch_of(&mut self, rows: &[Row]) -> pb::RecordGpuStatsRequest {
        self.sequence += 1;
        let driver_version = rows.last().and_then(|row| row.gpu.driver_version.clone());
        let gpu_stats = rows.iter().map(|row| row.reading.stats.clone()).collect();
        pb::RecordGpuStatsRequest {
            reporter_id: self.reporter_id.clone(),
            host: self.host.clone(),
            sequence: self.sequence,
            gpu_stats,
            lost: i64::try_from(std::mem::take(&mut self.lost)).unwrap_or(i64::MAX),
            driver_version,
            ..Default::default()
        }
    }

    fn succeed(&mut self) {
        self.batch = None;
        self.answered = true;
        let away = self.away.take();
        if self.sequence == 1 {
            tracing::info!("the server takes in GPU samples");
        } else if let Some(since) = away {
            let (away_s, waiting) = (since.elapsed().as_secs(), self.waiting());
            tracing::info!(away_s, waiting, "the server takes in GPU samples again");
        }
    }

    /// Logs a failure, the first time that it is met, and drops a batch that will always fail.
    fn fail(&mut self, status: &Status) {
        let reason = status.message();
        if self.leave_out(status) {
            return;
        }
        if status.code() == Code::InvalidArgument
            && let Some(batch) = self.batch.take()
        {
            let (lost, lost_events) = (batch.gpu_stats.len(), batch.gpu_events.len());
            tracing::error!(
                reason,
                lost,
                lost_events,
                "the server refuses GPU samples; they are dropped"
            );
            self.lost += lost as u64 + u64::try_from(batch.lost).unwrap_or(0);
        } else if self.away.is_none() {
            let code = status.code().to_string();
            tracing::warn!(
                reason,
                code,
                "the server does not take in GPU samples; they are kept for up to ten minutes"
            );
            self.away = Some(Instant::now());
        }
    }

    /// Takes a GPU that another host reports out of the batch, and reports the others. Returns whether that
    /// is what was wrong with it.
    fn leave_out(&mut self, status: &Status) -> bool {
        let Some((uuid, host)) = claimed(status) else {
            return false;
        };
        let Some(batch) = &mut self.batch else {
            return false;
        };
        // Nothing of the batch was stored, so that it may change.
        let before = (batch.gpu_stats.len(), batch.gpu_conditions.len());
        batch.gpu_stats.retain(|stats| stats.gpu_uuid() != uuid);
        batch.gpu_conditions.retain(|known| known.gpu_uuid != uuid);
        if before == (batch.gpu_stats.len(), batch.gpu_conditions.len()) {
            return false;
        }
        tracing::warn!(
            gpu = uuid,
            host,
            "another host reports this GPU; it is left out, and tried again in half a minute"
        );
        self.claimed.insert(uuid, Instant::now() + CLAIM_EVERY);
        true
    }

    /// How many samples are not known to be stored.
    fn waiting(&self) -> usize {
        let sent = self.batch.as_ref().map_or(0, |batch| batch.gpu_stats.len());
        sent + self.queue.len()
    }
    /// How many events are not known to be stored.
    fn waiting_events(&self) -> i64 {
        let sent = self.batch.iter().flat_map(|batch| &batch.gpu_events);
        let sent: i64 = sent.map(|event| event.occurrences).sum();
        sent + self.events.unstored()
    }
}

/// The GPU that another host reports, and that host, if that is what the status says.
fn claimed(status: &Status) -> Option<(String, String)> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    let claimed = pb::ErrorReason::GpuClaimed.as_str_name();
    let is_claimed = claimed.trim_start_matches("ERROR_REASON_") == info.reason;
    let told = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    is_claimed.then(|| (told("gpu_uuid"), told("host")))
}

fn message((uuid, condition): &(String, Condition)) -> pb::GpuCondition {
    pb::GpuCondition {
        gpu_uuid: uuid.clone(),
        state: condition.state.into(),
        memory_pressure: condition.memory_pressure.map(Into::into),
    }
}
