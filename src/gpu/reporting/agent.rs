//! `watchpost agent`: samples the GPUs of this host, and reports samples, events and conditions to
//! a server.
//!
//! Samples and events wait in queues. A sent batch stays unchanged until the server confirms that
//! the batch is stored, because only an unchanged batch can be sent again.

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

use super::check::MAX_EVENTS;
use crate::{
    entity,
    error::Chain,
    gpu::{
        condition::Condition,
        events::EventQueue,
        health::tracker::ConditionTracker,
        launch::{await_discovery, launch},
        live::LiveGpus,
        store::{
            events::ReportedConditions,
            queue::{QueuedSample, SampleQueue},
        },
    },
    pb::{self, gpu_stats_service_client::GpuStatsServiceClient},
};

/// Longest time that a sample waits for further samples of a batch.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Upper bound of a batch in bytes. Every server accepts at least 64 KiB.
const MAX_BATCH_BYTES: usize = 60_000;

/// Upper bound in bytes of the events of a batch, and of its conditions.
const MAX_PART_BYTES: usize = 20_000;

/// Bytes of the key and the length that precede a message in a batch.
const FIELD_OVERHEAD: usize = 4;

/// Upper bound of samples that a server accepts in one batch.
const MAX_SAMPLES_PER_BATCH: usize = 1_000;

/// Time limits of a connection attempt and of an answer. The answer limit is longer than the
/// server's database timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

/// Idle time before a keepalive ping, and the time limit of its answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time after which a GPU is reported again that another host reports.
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Pauses between attempts: the first, the longest, and the longest at shutdown.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(15);
const MAX_DRAIN_PAUSE: Duration = Duration::from_millis(500);

/// GPUs to report, and the server that receives the reports.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Settings of the samplers.
    pub gpus: crate::gpu::Settings,
    /// Server that receives the reports.
    pub server: Uri,
    /// Upper bound of queued samples, without the batch in flight.
    pub buffer: usize,
    /// Time limit for reporting the last samples at shutdown.
    pub grace: Duration,
}

/// Reporter of this process.
struct Agent {
    endpoint: Endpoint,
    queue: Arc<SampleQueue>,
    events: Arc<EventQueue>,
    conditions: Arc<ConditionTracker>,
    /// Last conditions that were reported to the server.
    reported: ReportedConditions,
    reporter_id: String,
    host: String,
    /// Sequence number of the last batch.
    sequence: i64,
    /// Batch in flight, sent but not confirmed.
    batch: Option<pb::RecordGpuStatsRequest>,
    /// GPUs that another host reports, by UUID, with the time of the next attempt.
    claimed_elsewhere: HashMap<String, Instant>,
    /// Number of samples lost since the last batch was built.
    lost: u64,
    next_report: Instant,
    /// True if the server has answered since the last failure.
    answered: bool,
    /// Time since which the server has not answered. `None` while it answers.
    away: Option<Instant>,
    /// Cancelled when no more samples will come.
    draining: CancellationToken,
}

/// Samples and reports until `shutdown`, then reports the rest within the grace period.
pub async fn run(settings: Settings, shutdown: CancellationToken) {
    let (host, server) = (settings.gpus.host.clone(), settings.server.clone());
    tracing::info!("reporting the GPUs of {host} to {server}");
    let queue = Arc::new(SampleQueue::new(settings.buffer));
    let live = LiveGpus::default();
    let events = Arc::new(EventQueue::default());
    let conditions = ConditionTracker::new(live.clone(), events.clone(), HashMap::new());
    let outputs = (Arc::new(conditions), events);
    let gpus = settings.gpus;
    let (sampling, discovery) = launch(gpus, live, queue.clone(), outputs.clone(), |_| {});
    let draining = CancellationToken::new();
    let mut agent = Agent::new(host, settings.server, queue, outputs, draining.clone());
    let mut reporting = Box::pin(agent.report());
    let log_discovery = async {
        tracing::info!("{}", await_discovery(discovery).await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // Reporting ends only after the drain.
        () = &mut reporting => {}
        () = log_discovery => {}
        () = shutdown.cancelled() => {}
    }
    tracing::info!("stopping");
    sampling.stop.set();
    draining.cancel();
    let reported = timeout(settings.grace, &mut reporting).await.is_ok();
    drop(reporting);
    if reported {
        tracing::info!("stopped; all samples are reported");
    } else {
        let (lost, lost_events) = (agent.waiting(), agent.waiting_events());
        tracing::warn!(lost, lost_events, "stopped; the last GPU samples could not be reported");
    }
}

impl Agent {
    fn new(
        host: String,
        server: Uri,
        queue: Arc<SampleQueue>,
        (conditions, events): (Arc<ConditionTracker>, Arc<EventQueue>),
        draining: CancellationToken,
    ) -> Self {
        let endpoint = Endpoint::from(server)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Self {
            endpoint,
            queue,
            events,
            conditions,
            reported: ReportedConditions::default(),
            // A new id per process, because the sequence starts again.
            reporter_id: Uuid::now_v7().to_string(),
            host,
            sequence: 0,
            batch: None,
            claimed_elsewhere: HashMap::new(),
            lost: 0,
            next_report: Instant::now(),
            answered: false,
            away: None,
            draining,
        }
    }

    /// Reports until everything is drained, reconnecting after failures.
    async fn report(&mut self) {
        let mut pause = FIRST_PAUSE;
        while let Err(status) = self.report_on_connection().await {
            if std::mem::take(&mut self.answered) {
                pause = FIRST_PAUSE;
            }
            self.record_failure(&status);
            // Jitter, so that the agents of one server do not return at the same time.
            let random = f64::from(Uuid::now_v7().as_bytes()[15]) / 255.0;
            let jittered = pause.mul_f64(0.5 + random / 2.0);
            if self.draining.is_cancelled() {
                sleep(jittered.min(MAX_DRAIN_PAUSE)).await;
            } else {
                tokio::select! {
                    () = sleep(jittered) => {}
                    () = self.draining.cancelled() => {}
                }
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Reports on one connection, until everything is drained or the connection fails.
    async fn report_on_connection(&mut self) -> Result<(), Status> {
        let connection = self.endpoint.connect().await;
        let channel = connection.map_err(|error| Status::unavailable(Chain(&error).to_string()))?;
        let (send, batches) = mpsc::channel(1);
        let mut answers =
            GpuStatsServiceClient::new(channel).record_gpu_stats(ReceiverStream::new(batches)).await?.into_inner();
        loop {
            if self.batch.is_none() {
                self.batch = self.next_batch().await;
            }
            let Some(batch) = self.batch.clone() else {
                return Ok(());
            };
            let sequence = batch.sequence;
            // If the stream is closed, the answer contains the cause.
            let _ = send.send(batch).await;
            let message = timeout(ANSWER_TIMEOUT, answers.message()).await;
            let answer = message.map_err(|_| Status::deadline_exceeded("the server did not answer within 40 s"))??;
            match answer {
                Some(answer) if answer.sequence == sequence => self.record_success(),
                Some(_) => return Err(Status::internal("the answer is for another batch")),
                None => return Err(Status::unavailable("the server has ended the stream")),
            }
        }
    }

    /// Next batch, once one is due. `None` if everything is drained.
    async fn next_batch(&mut self) -> Option<pb::RecordGpuStatsRequest> {
        loop {
            tokio::select! {
                () = sleep_until(self.next_report) => {}
                () = self.queue.batch_ready() => {}
                () = self.events.wait_for_event() => {}
                () = self.draining.cancelled() => {}
            }
            let now = Instant::now();
            self.claimed_elsewhere.retain(|_, until| *until > now);
            let (gpu_events, gpu_conditions) = (self.take_events(), self.take_conditions());
            let event_lengths = gpu_events.iter().map(Message::encoded_len);
            let condition_lengths = gpu_conditions.iter().map(Message::encoded_len);
            let lengths = event_lengths.chain(condition_lengths);
            // Every message is preceded by a key and a length.
            let mut bytes: usize = lengths.map(|length| length + FIELD_OVERHEAD).sum();
            let mut samples = 0;
            let fits = |row: &QueuedSample| {
                bytes += row.reading.stats.encoded_len() + FIELD_OVERHEAD;
                samples += 1;
                samples == 1 || bytes <= MAX_BATCH_BYTES && samples <= MAX_SAMPLES_PER_BATCH
            };
            let (mut rows, dropped) = self.queue.take(fits);
            rows.retain(|row| !self.claimed_elsewhere.contains_key(&row.gpu.uuid));
            self.lost += dropped;
            let rest = self.queue.len();
            self.next_report = Instant::now();
            if rest == 0 {
                self.next_report += REPORT_INTERVAL;
            }
            let is_empty = rows.is_empty() && gpu_events.is_empty() && gpu_conditions.is_empty();
            if !is_empty || self.lost > 0 {
                return Some(pb::RecordGpuStatsRequest { gpu_events, gpu_conditions, ..self.build_batch(&rows) });
            }
            if self.draining.is_cancelled() {
                return None;
            }
        }
    }

    /// Removes the oldest events from the queue, up to the bounds of a batch.
    fn take_events(&self) -> Vec<pb::GpuEvent> {
        let draining = self.draining.is_cancelled();
        self.events.flush_summaries((!draining).then(|| Instant::now().into_std()));
        let events = self.events.peek(MAX_EVENTS);
        let mut bytes = 0;
        let messages = events.iter().map(|event| pb::GpuEvent::from(event.to_model(&self.host)));
        let messages: Vec<_> = messages
            .take_while(|event| {
                let first = bytes == 0;
                bytes += event.encoded_len() + FIELD_OVERHEAD;
                first || bytes <= MAX_PART_BYTES
            })
            .collect();
        self.events.remove(messages.len());
        messages
    }

    /// Conditions that the server does not have yet.
    fn take_conditions(&mut self) -> Vec<pb::GpuCondition> {
        let now = entity::now();
        let mut changes = self.reported.changes(self.conditions.reported(), now);
        changes.retain(|(uuid, _)| !self.claimed_elsewhere.contains_key(uuid));
        changes.truncate(MAX_PART_BYTES / 128);
        let messages = changes.iter().map(to_message).collect();
        self.reported.remember(changes, now);
        messages
    }

    fn build_batch(&mut self, rows: &[QueuedSample]) -> pb::RecordGpuStatsRequest {
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

    fn record_success(&mut self) {
        self.batch = None;
        self.answered = true;
        let away = self.away.take();
        if self.sequence == 1 {
            tracing::info!("the server accepts GPU samples");
        } else if let Some(since) = away {
            let (away_s, waiting) = (since.elapsed().as_secs(), self.waiting());
            tracing::info!(away_s, waiting, "the server accepts GPU samples again");
        }
    }

    /// Logs a failure if the server worked before. Drops a batch that the server will always
    /// refuse.
    fn record_failure(&mut self, status: &Status) {
        let reason = status.message();
        if self.drop_claimed_gpu(status) {
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
                "the server refuses a batch of GPU samples; the batch is dropped"
            );
            self.lost += lost as u64 + u64::try_from(batch.lost).unwrap_or(0);
        } else if self.away.is_none() {
            let code = status.code().to_string();
            tracing::warn!(
                reason,
                code,
                "the server does not accept GPU samples; samples are kept for up to ten minutes"
            );
            self.away = Some(Instant::now());
        }
    }

    /// Removes a GPU that another host reports from the batch. Returns true if the batch changed
    /// and may be sent again.
    fn drop_claimed_gpu(&mut self, status: &Status) -> bool {
        let Some((uuid, host)) = claimed_elsewhere(status) else {
            return false;
        };
        let Some(batch) = &mut self.batch else {
            return false;
        };
        // The server stored nothing of the batch, so the batch may change.
        let old_lengths = (batch.gpu_stats.len(), batch.gpu_conditions.len());
        batch.gpu_stats.retain(|stats| stats.gpu_uuid() != uuid);
        batch.gpu_conditions.retain(|known| known.gpu_uuid != uuid);
        if old_lengths == (batch.gpu_stats.len(), batch.gpu_conditions.len()) {
            return false;
        }
        tracing::warn!(
            gpu = uuid,
            host,
            "another host reports this GPU; its samples are dropped, and reported again in 30 s"
        );
        self.claimed_elsewhere.insert(uuid, Instant::now() + CLAIM_RETRY_INTERVAL);
        true
    }

    /// Number of samples without a confirmation.
    fn waiting(&self) -> usize {
        let sent = self.batch.as_ref().map_or(0, |batch| batch.gpu_stats.len());
        sent + self.queue.len()
    }

    /// Number of event occurrences without a confirmation.
    fn waiting_events(&self) -> i64 {
        let sent_events = self.batch.iter().flat_map(|batch| &batch.gpu_events);
        let sent: i64 = sent_events.map(|event| event.occurrences).sum();
        sent + self.events.unstored_occurrences()
    }
}

/// UUID of a GPU that another host reports, and the name of that host, from the error details of
/// the status.
fn claimed_elsewhere(status: &Status) -> Option<(String, String)> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    let reason = pb::ErrorReason::GpuClaimed.as_str_name();
    let is_claimed = reason.trim_start_matches("ERROR_REASON_") == info.reason;
    let metadata = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    is_claimed.then(|| (metadata("gpu_uuid"), metadata("host")))
}

fn to_message((uuid, condition): &(String, Condition)) -> pb::GpuCondition {
    pb::GpuCondition {
        gpu_uuid: uuid.clone(),
        state: condition.state.into(),
        memory_pressure: condition.memory_pressure.map(Into::into),
    }
}
