//! Jobs as they are in the database, put there beside the server.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait, DatabaseConnection, DatabaseTransaction, IntoActiveModel, ModelTrait,
};
use tonic::transport::Channel;
use uuid::Uuid;
use watchpost::{
    db::{Db, Settings, Synchronous},
    entity::{
        job::{self, JobStatus},
        job_attempt::{self, AttemptOutcome, JobAttemptStatus},
        job_log::{self, JobLogLevel},
        job_transition,
    },
    feed,
    pb::{self, JobChangeKind, job_service_client::JobServiceClient, watch_response::Update},
    topics,
};

use crate::support::TestServer;

/// A job that there is not.
pub const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

pub fn client(server: &TestServer) -> JobServiceClient<Channel> {
    JobServiceClient::new(server.channel.clone())
}

/// The time as the database keeps it.
pub fn now() -> DateTime<Utc> {
    watchpost::entity::now()
}

/// So many seconds before now.
pub fn ago(seconds: i64) -> DateTime<Utc> {
    now() - TimeDelta::seconds(seconds)
}

/// A job that waits in the queue `default`, created a minute ago.
pub fn queued(job_type: &str) -> job::Model {
    let created_at = ago(60);
    job::Model::queued(job_type.into(), created_at)
}

/// A job that was begun so many seconds ago.
pub fn running(job_type: &str, seconds: i64) -> job::Model {
    let started_at = Some(ago(seconds));
    job::Model {
        status: JobStatus::Running,
        created_at: ago(seconds + 60),
        scheduled_at: Some(ago(seconds + 60)),
        started_at,
        worker_id: Some("worker-1".into()),
        lease_id: Some(Uuid::now_v7()),
        lease_ms: Some(3_600_000),
        lease_expires_at: Some(now() + TimeDelta::hours(1)),
        heartbeat_at: started_at,
        version_id: 2,
        transitioned_at: started_at,
        ..queued(job_type)
    }
}

/// A job that has come to this end, so many seconds ago, after a second.
pub fn finished(job_type: &str, status: JobStatus, seconds: i64) -> job::Model {
    let at = ago(seconds);
    let completed_at = Some(at);
    let failed = status == JobStatus::Failed;
    job::Model {
        status,
        completed_at,
        started_at: Some(at - TimeDelta::seconds(1)),
        lease_id: None,
        lease_ms: None,
        lease_expires_at: None,
        error_message: failed.then(|| "no space left".into()),
        error_code: failed.then(|| "ENOSPC".into()),
        failures: failed.into(),
        version_id: 3,
        transitioned_at: completed_at,
        ..running(job_type, seconds + 2)
    }
}

/// An attempt of a job.
pub fn attempt(
    job_id: Uuid,
    number: i32,
    started_at: DateTime<Utc>,
    ended: Option<(DateTime<Utc>, AttemptOutcome)>,
) -> job_attempt::Model {
    use AttemptOutcome as Outcome;
    let status = match ended {
        None => JobAttemptStatus::Started,
        Some((_, Outcome::Succeeded)) => JobAttemptStatus::Succeeded,
        Some((_, Outcome::Failed | Outcome::TimedOut)) => JobAttemptStatus::Failed,
        Some(_) => JobAttemptStatus::Cancelled,
    };
    let failed = status == JobAttemptStatus::Failed;
    job_attempt::Model {
        id: Uuid::now_v7(),
        job_id,
        attempt_number: number,
        started_at,
        ended_at: ended.map(|(at, _)| at),
        status,
        worker_id: Some("worker-1".into()),
        error_message: failed.then(|| format!("failure {number}")),
        error_traceback: failed.then(|| "at line 7".into()),
        result: None,
        lease_id: None,
        outcome: ended.map(|(_, outcome)| outcome),
        error_code: failed.then(|| "E".into()),
    }
}

/// A change of a job's status.
pub fn transition(
    job_id: Uuid,
    version_id: Option<i32>,
    at: DateTime<Utc>,
    (from, to): (&str, &str),
) -> job_transition::Model {
    job_transition::Model {
        id: Uuid::now_v7(),
        job_id,
        from_status: from.into(),
        to_status: to.into(),
        transitioned_at: at,
        triggered_by: "worker".into(),
        metadata_json: None,
        version_id,
        attempt_number: Some(1),
        actor: None,
        reason: None,
    }
}

/// A line of a job's log.
pub fn line(job_id: Uuid, line: Option<i64>, level: JobLogLevel, message: &str) -> job_log::Model {
    job_log::Model {
        id: Uuid::now_v7(),
        job_id,
        attempt_number: 1,
        timestamp: now(),
        level,
        message: message.into(),
        context: None,
        line,
    }
}

/// Inserts rows beside the server.
pub async fn insert<M, A>(db: &DatabaseConnection, rows: impl IntoIterator<Item = M>)
where
    M: ModelTrait + IntoActiveModel<A>,
    A: ActiveModelTrait<Entity = M::Entity> + ActiveModelBehavior + Send,
    <A::Entity as sea_orm::EntityTrait>::Model: IntoActiveModel<A>,
{
    let mut rows: Vec<A> = rows.into_iter().map(|row| row.into_active_model().reset_all()).collect();
    while !rows.is_empty() {
        let chunk: Vec<_> = rows.drain(..rows.len().min(100)).collect();
        let insert = <A::Entity as sea_orm::EntityTrait>::insert_many(chunk);
        insert.exec_without_returning(db).await.unwrap();
    }
}

/// The database of a server, beside it.
pub async fn beside(server: &TestServer) -> Db {
    let settings =
        Settings { url: server.database.url().into(), connections: 4, sqlite_synchronous: Synchronous::Normal };
    Db::connect(&settings).await.unwrap()
}

/// A change of a job, as watches are told of it.
pub fn change(kind: JobChangeKind, job: &job::Model) -> pb::JobChange {
    pb::JobChange { kind: kind.into(), job: Some(job.clone().into()), ..Default::default() }
}

/// Records these in one transaction, each on its own.
pub async fn record(tx: &DatabaseTransaction, updates: impl IntoIterator<Item = Update>) {
    let records = updates.into_iter().map(|update| topics::record("", update));
    feed::record(tx, records).await.unwrap();
}

/// Records changes in one transaction.
pub async fn tell(db: &Db, updates: impl IntoIterator<Item = Update>) {
    let told = db.write(async |tx| {
        record(tx, updates).await;
        Ok(())
    });
    told.await.unwrap();
}

/// Changes of jobs, together.
pub fn changes(changes: impl IntoIterator<Item = pb::JobChange>) -> Update {
    let changes = changes.into_iter().collect();
    Update::JobChanges(pb::JobChanges { changes })
}

/// Lines of logs, together.
pub fn logged(lines: &[job_log::Model]) -> Update {
    let logs = lines.iter().cloned().map(Into::into).collect();
    Update::JobLogs(pb::JobLogs { logs })
}

/// Makes a job what it is now, logs lines for it, and tells of both, all in one transaction.
pub async fn replace(db: &Db, kind: JobChangeKind, job: &job::Model, lines: &[job_log::Model]) {
    let replaced = db.write(async |tx| {
        let row = job.clone().into_active_model().reset_all();
        row.update(tx).await?;
        for line in lines {
            line.clone().into_active_model().reset_all().insert(tx).await?;
        }
        // The change goes before the lines, as nothing says that it does not.
        let lines = (!lines.is_empty()).then(|| logged(lines));
        record(tx, [changes([change(kind, job)])].into_iter().chain(lines)).await;
        Ok(())
    });
    replaced.await.unwrap();
}
