//! `JobScheduleService`, and the jobs that schedules make.

mod crud;
mod preview;
mod processes;
mod ticks;

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use tonic::transport::Channel;
use uuid::Uuid;
use watchpost::{
    entity::job,
    pb::{self, job_schedule_service_client::JobScheduleServiceClient},
};

use crate::support::{
    TestServer,
    calls::{Reply, mask},
    database::TestDatabase,
    eventually_ok,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn client(server: &TestServer) -> JobScheduleServiceClient<Channel> {
    JobScheduleServiceClient::new(server.channel.clone())
}

/// A schedule that does not tick soon, of jobs of the type `t`.
pub fn yearly(name: &str) -> pb::JobSchedule {
    // Not at the turn of the year, at which a test may run.
    cron(name, "17 3 29 2 *")
}

/// A schedule of jobs of the type `t`.
fn cron(name: &str, cron: &str) -> pb::JobSchedule {
    pb::JobSchedule { name: name.into(), cron: cron.into(), job_type: "t".into(), ..Default::default() }
}

async fn try_create(server: &TestServer, schedule: pb::JobSchedule) -> Reply<pb::JobSchedule> {
    let job_schedule = Some(schedule);
    let request = pb::CreateJobScheduleRequest { job_schedule };
    client(server).create_job_schedule(request).await
}

pub async fn create(server: &TestServer, schedule: pb::JobSchedule) -> pb::JobSchedule {
    try_create(server, schedule).await.unwrap().into_inner()
}

async fn get(server: &TestServer, id: &str) -> pb::JobSchedule {
    let request = pb::GetJobScheduleRequest { id: id.into() };
    let schedule = client(server).get_job_schedule(request).await;
    schedule.unwrap().into_inner()
}

async fn update(server: &TestServer, schedule: pb::JobSchedule, paths: &[&str]) -> Reply<pb::JobSchedule> {
    let request = pb::UpdateJobScheduleRequest {
        job_schedule: Some(schedule),
        update_mask: mask(paths),
        expected_version_id: None,
    };
    client(server).update_job_schedule(request).await
}

/// The jobs of a schedule, in the order of their ticks; those for none come first.
async fn jobs(database: &TestDatabase, schedule_id: &str) -> Vec<job::Model> {
    let id: Uuid = schedule_id.parse().unwrap();
    let db = database.connect().await;
    let jobs = job::Entity::find()
        .filter(job::Column::ScheduleId.eq(id))
        .order_by_asc(job::Column::TickAt)
        .all(&db)
        .await
        .unwrap();
    db.close().await.unwrap();
    jobs
}

fn ticks(jobs: &[job::Model]) -> Vec<DateTime<Utc>> {
    jobs.iter().filter_map(|job| job.tick_at).collect()
}

/// Waits until this is so of a schedule.
async fn schedule_when(server: &TestServer, id: &str, is_so: impl Fn(&pb::JobSchedule) -> bool) -> pb::JobSchedule {
    eventually_ok("the schedule gets there", async || {
        let schedule = get(server, id).await;
        if is_so(&schedule) { Ok(schedule) } else { Err(format!("{schedule:?}")) }
    })
    .await
}
