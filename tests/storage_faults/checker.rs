//! Has storage fail at random moments, and checks what was acknowledged meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter, QuerySelect};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use watchpost::{
    entity::{alert, camera, event, job},
    pb::{self, alert_rule_service_client::AlertRuleServiceClient, camera_service_client::CameraServiceClient},
};

use super::{
    faults::Fault,
    writers::{self, Acknowledged, Shared},
};

/// How many writers there are.
const WRITERS: usize = 4;

/// How long the server may take to acknowledge writes again after a fault.
const RECOVERY: Duration = Duration::from_secs(10);

/// How often a read of the checker itself is tried: on PostgreSQL it may meet the fault as well.
const READS: usize = 200;

/// A server on storage that can be made to fail.
pub trait Subject {
    /// Starts the server, on the same address and database each time, and waits until it serves.
    fn start(&mut self) -> impl Future<Output = ()>;
    /// Kills it with SIGKILL.
    fn kill(&mut self) -> impl Future<Output = ()>;
    /// Has the storage fail.
    fn begin(&mut self, fault: Fault);
    /// Has it work again.
    fn end(&mut self) -> impl Future<Output = ()>;
    /// The faults that may come, one of them at a time.
    fn faults(&self) -> Vec<Fault>;
    /// Where it listens.
    fn address(&self) -> String;
    /// A reader that is not the server's.
    fn reader(&self) -> impl Future<Output = DatabaseConnection>;
}

/// What is to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Seed of the faults, their moments and their lengths.
    pub seed: u64,
    /// How many faults.
    pub cycles: usize,
    /// After one in so many of them the server is killed.
    pub kill_one_in: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that were refused.
    pub refused: u64,
    /// How often the server was killed.
    pub kills: u64,
    /// Everything that is wrong; empty if nothing is.
    pub problems: Vec<String>,
}

/// Has storage fail under writers, and returns what was wrong. The server has been started.
pub async fn run(subject: &mut impl Subject, plan: Plan) -> Outcome {
    let mut random = Rng::with_seed(plan.seed);
    let channel = Endpoint::from_shared(subject.address()).unwrap().connect_lazy();
    prepare(channel.clone()).await;
    let shared = Arc::new(Shared::default());
    let writers: Vec<_> =
        (0..WRITERS).map(|number| tokio::spawn(writers::write(number, channel.clone(), shared.clone()))).collect();
    let reader = subject.reader().await;
    let mut known = Known::default();
    let mut outcome = Outcome::default();
    let faults = subject.faults();
    for cycle in 0..plan.cycles {
        sleep(Duration::from_micros(random.u64(0..20_000))).await;
        let fault = faults[random.usize(0..faults.len())];
        subject.begin(fault);
        sleep(Duration::from_micros(random.u64(0..30_000))).await;
        let is_killed = random.usize(0..plan.kill_one_in) == 0;
        if is_killed && random.bool() {
            subject.kill().await;
            subject.end().await;
            subject.start().await;
        } else {
            subject.end().await;
            if is_killed {
                recovered(&shared).await;
                subject.kill().await;
                subject.start().await;
            }
        }
        outcome.kills += u64::from(is_killed);
        if !recovered(&shared).await {
            let problem = format!("cycle {cycle}: nothing is acknowledged 10 s after {fault:?}");
            outcome.problems.push(problem);
            break;
        }
        let new = std::mem::take(&mut *shared.acknowledged.lock().unwrap());
        let problems = known.check(&reader, new).await;
        outcome.problems.extend(problems.into_iter().map(|problem| format!("cycle {cycle}, {fault:?}: {problem}")));
        if outcome.problems.len() > 10 {
            break;
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    subject.kill().await;
    subject.start().await;
    let new = std::mem::take(&mut *shared.acknowledged.lock().unwrap());
    outcome.problems.extend(known.check(&reader, new).await);
    outcome.problems.extend(known.check_all(&reader).await);
    let mut wrong = std::mem::take(&mut *shared.wrong.lock().unwrap());
    wrong.dedup();
    outcome.problems.extend(wrong.into_iter().take(10).map(|wrong| format!("a write was refused with {wrong}")));
    outcome.acknowledged = shared.count.load(Ordering::Relaxed);
    outcome.refused = shared.refused.load(Ordering::Relaxed);
    outcome
}

/// A camera, and a rule that always fires.
async fn prepare(channel: Channel) {
    let camera = pb::Camera { id: "door".into(), name: "door".into(), ..Default::default() };
    let request = pb::CreateCameraRequest { camera: Some(camera) };
    CameraServiceClient::new(channel.clone()).create_camera(request).await.unwrap();
    let rule = pb::AlertRule {
        name: "everything".into(),
        cooldown: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let request = pb::CreateAlertRuleRequest { alert_rule: Some(rule) };
    AlertRuleServiceClient::new(channel).create_alert_rule(request).await.unwrap();
}

/// Waits until something was acknowledged that was asked for after now. Returns whether it was.
async fn recovered(shared: &Shared) -> bool {
    let begun = Instant::now();
    // What the writers have asked for before may be acknowledged without any recovery.
    let enough = shared.count.load(Ordering::Acquire) + WRITERS as u64 + 1;
    while shared.count.load(Ordering::Acquire) < enough {
        if begun.elapsed() > RECOVERY {
            return false;
        }
        sleep(Duration::from_millis(1)).await;
    }
    true
}

/// All that was ever acknowledged.
#[derive(Default)]
struct Known {
    events: HashMap<i64, String>,
    rows: Vec<Acknowledged>,
}

impl Known {
    /// What is wrong with rows that were acknowledged just now.
    async fn check(&mut self, reader: &DatabaseConnection, new: Vec<Acknowledged>) -> Vec<String> {
        let mut problems = missing(reader, &new).await;
        for row in &new {
            if let Acknowledged::Event(id, marker, _) = row
                && let Some(before) = self.events.insert(*id, marker.clone())
            {
                problems.push(format!("the id {id} was given to {before} and to {marker}"));
            }
        }
        self.rows.extend(new);
        problems
    }

    /// What is wrong with all of them.
    async fn check_all(&self, reader: &DatabaseConnection) -> Vec<String> {
        let mut problems = Vec::new();
        for rows in self.rows.chunks(5_000) {
            problems.extend(missing(reader, rows).await);
        }
        problems
    }
}

/// Which of these rows the reader does not see, or sees with another text.
async fn missing(reader: &DatabaseConnection, rows: &[Acknowledged]) -> Vec<String> {
    for _ in 0..READS {
        match try_missing(reader, rows).await {
            Ok(missing) => return missing,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    vec!["the checker itself cannot read".into()]
}

async fn try_missing(reader: &DatabaseConnection, rows: &[Acknowledged]) -> Result<Vec<String>, DbErr> {
    let (mut events, mut alerts, mut jobs, mut cameras) = (vec![], Vec::<Uuid>::new(), vec![], vec![]);
    for row in rows {
        match row {
            Acknowledged::Event(id, _, raised) => {
                events.push(*id);
                alerts.extend(raised);
            }
            Acknowledged::Job(id, _) => jobs.push(*id),
            Acknowledged::Camera(id, _) => cameras.push(id.clone()),
        }
    }
    let mut there: HashMap<String, String> = HashMap::new();
    for ids in events.chunks(500) {
        let found = event::Entity::find().select_only().columns([event::Column::Id, event::Column::Summary]);
        let found: Vec<(i64, Option<String>)> =
            found.filter(event::Column::Id.is_in(ids.iter().copied())).into_tuple().all(reader).await?;
        there.extend(found.into_iter().map(|(id, text)| (format!("event {id}"), text.unwrap_or_default())));
    }
    for ids in alerts.chunks(500) {
        let found = alert::Entity::find().select_only().column(alert::Column::Id);
        let found: Vec<Uuid> =
            found.filter(alert::Column::Id.is_in(ids.iter().copied())).into_tuple().all(reader).await?;
        there.extend(found.into_iter().map(|id| (format!("alert {id}"), String::new())));
    }
    for ids in jobs.chunks(500) {
        let found = job::Entity::find().select_only().columns([job::Column::Id, job::Column::JobType]);
        let found: Vec<(Uuid, String)> =
            found.filter(job::Column::Id.is_in(ids.iter().copied())).into_tuple().all(reader).await?;
        there.extend(found.into_iter().map(|(id, text)| (format!("job {id}"), text)));
    }
    for ids in cameras.chunks(500) {
        let found = camera::Entity::find().select_only().columns([camera::Column::Id, camera::Column::Name]);
        let found: Vec<(String, String)> =
            found.filter(camera::Column::Id.is_in(ids.iter().cloned())).into_tuple().all(reader).await?;
        there.extend(found.into_iter().map(|(id, text)| (format!("camera {id}"), text)));
    }
    let mut problems = Vec::new();
    let mut expect = |name: String, text: &str| match there.get(&name) {
        Some(found) if found == text => {}
        Some(found) => problems.push(format!("{name} was acknowledged as {text} and is {found}")),
        None => problems.push(format!("{name} was acknowledged and is not there")),
    };
    for row in rows {
        match row {
            Acknowledged::Event(id, marker, raised) => {
                expect(format!("event {id}"), marker);
                for alert in raised {
                    expect(format!("alert {alert}"), "");
                }
            }
            Acknowledged::Job(id, marker) => expect(format!("job {id}"), marker),
            Acknowledged::Camera(id, marker) => expect(format!("camera {id}"), marker),
        }
    }
    Ok(problems)
}
