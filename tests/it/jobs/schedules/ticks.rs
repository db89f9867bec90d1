//! The jobs that schedules make.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait};
use serde_json::json;
use uuid::Uuid;
use watchpost::{
    entity::{
        job::{self, JobStatus},
        job_schedule,
    },
    pb::{
        self, JobChangeKind, MissedPolicy, Topic, job_service_client::JobServiceClient,
        job_type_service_client::JobTypeServiceClient, job_worker_service_client::JobWorkerServiceClient,
        watch_response::Update,
    },
};

use super::{NONE, client, create, cron, get, jobs, schedule_when, ticks, update, yearly};
use crate::support::{
    TestServer, Watch,
    calls::{not_found, object, refused, seconds},
    database::{Backend, TestDatabase, on_both},
    topics,
};

/// The next job that is made.
async fn created(watch: &mut Watch) -> Vec<pb::Job> {
    let Update::JobChanges(changes) = watch.update().await else { panic!("not a job") };
    let job = |change: pb::JobChange| {
        assert_eq!(change.kind(), JobChangeKind::Created);
        change.job.unwrap()
    };
    changes.changes.into_iter().map(job).collect()
}

/// Has a schedule tick next at a time, as if no server had run since.
async fn move_back(database: &TestDatabase, id: &str, next_tick_at: DateTime<Utc>) {
    let db = database.connect().await;
    let moved = job_schedule::ActiveModel {
        id: Set(id.parse().unwrap()),
        next_tick_at: Set(next_tick_at),
        ..<job_schedule::ActiveModel as ActiveModelTrait>::default()
    };
    moved.update(&db).await.unwrap();
    db.close().await.unwrap();
}

/// Changes something about a schedule, so that servers look at it.
async fn nudge(server: &TestServer, id: &str) {
    let description = Some(Uuid::now_v7().to_string());
    let schedule = pb::JobSchedule { id: id.into(), description, ..Default::default() };
    update(server, schedule, &[]).await.unwrap();
}

fn minute(time: DateTime<Utc>) -> DateTime<Utc> {
    time.duration_trunc(TimeDelta::minutes(1)).unwrap()
}

#[on_both]
async fn a_job_is_made_for_each_tick(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[Topic::Jobs])).await;
    let schedule = create(
        &server,
        pb::JobSchedule {
            payload: object(&json!({"days": 30})),
            queue_name: "night".into(),
            priority: Some(4),
            max_attempts: Some(7),
            ..cron("s", "* * * * * *")
        },
    )
    .await;
    let mut told = Vec::new();
    for _ in 0..3 {
        told.extend(created(&mut watch).await);
    }
    let third = told[2].tick_at.unwrap().seconds;
    let schedule =
        schedule_when(&server, &schedule.id, |now| now.last_tick_at.is_some_and(|at| at.seconds >= third)).await;
    assert_eq!((schedule.missed_ticks, schedule.version_id), (0, 1));
    let made = jobs(&server.database, &schedule.id).await;
    let ticks = ticks(&made);
    for (at, tick) in ticks.iter().enumerate() {
        assert_eq!(*tick, ticks[0] + TimeDelta::seconds(at.try_into().unwrap()), "each second has one");
        assert_eq!(tick.timestamp_subsec_nanos(), 0);
    }
    let first = &made[0];
    assert_eq!(told[0].id, first.id.to_string());
    assert_eq!(told[0].schedule_id.as_ref(), Some(&schedule.id));
    assert!(first.created_at >= ticks[0] && first.scheduled_at == Some(ticks[0]));
    let expected = job::Model {
        job_type: "t".into(),
        status: JobStatus::Queued,
        queue_name: Some("night".into()),
        priority: 4,
        max_attempts: 7,
        payload: Some(json!({"days": 30})),
        attempt_number: 1,
        timeout_ms: Some(600_000),
        max_rescues: 3,
        dead_letter: true,
        version_id: 1,
        retry_policy: None,
        deadline_at: None,
        ..first.clone()
    };
    assert_eq!(*first, expected);
    server.stop().await;
}

#[on_both]
async fn ticks_that_are_missed_are_made_up_for_as_the_policy_says(backend: Backend) {
    let server = TestServer::start(backend).await;
    for policy in [MissedPolicy::Skip, MissedPolicy::RunOnce, MissedPolicy::RunAll] {
        let schedule = pb::JobSchedule { missed_policy: policy.into(), ..cron(policy.as_str_name(), "* * * * *") };
        let id = create(&server, schedule).await.id;
        // One that the server makes by itself would be among those that are looked at.
        let from = minute(watchpost::entity::now()) - TimeDelta::minutes(10);
        move_back(&server.database, &id, from).await;
        nudge(&server, &id).await;
        let now = watchpost::entity::now().timestamp();
        let schedule = schedule_when(&server, &id, |schedule| schedule.next_tick_at.unwrap().seconds > now).await;
        let made = jobs(&server.database, &id).await;
        let next = DateTime::from_timestamp(schedule.next_tick_at.unwrap().seconds, 0).unwrap();
        let due: Vec<_> = (0..(next - from).num_minutes()).map(|n| from + TimeDelta::minutes(n)).collect();
        let missed_before = made[0].created_at - TimeDelta::seconds(60);
        let (missed, on_time): (Vec<_>, Vec<_>) = due.into_iter().partition(|tick| *tick < missed_before);
        assert!(missed.len() >= 9, "{missed:?}");
        let made_up_for = match policy {
            MissedPolicy::Skip => 0,
            MissedPolicy::RunOnce => 1,
            _ => missed.len(),
        };
        let left_out = missed.len() - made_up_for;
        let expected = [&missed[left_out..], &on_time[..]].concat();
        assert_eq!(ticks(&made), expected, "{policy:?}");
        assert_eq!(schedule.missed_ticks, i64::try_from(left_out).unwrap(), "{policy:?}");
        let last = made.last().unwrap();
        assert_eq!(schedule.last_job_id, Some(last.id.to_string()));
        assert_eq!(schedule.last_tick_at.unwrap().seconds, last.tick_at.unwrap().timestamp());
        assert!(made.iter().all(|job| job.scheduled_at == job.tick_at));
    }
    server.stop().await;
}

#[on_both]
async fn many_missed_ticks_are_made_up_for_in_parts(backend: Backend) {
    let server = TestServer::start(backend).await;
    let schedule = pb::JobSchedule { missed_policy: MissedPolicy::RunAll.into(), ..cron("s", "*/10 * * * * *") };
    let id = create(&server, schedule).await.id;
    let from = minute(watchpost::entity::now()) - TimeDelta::minutes(400);
    move_back(&server.database, &id, from).await;
    nudge(&server, &id).await;
    let now = watchpost::entity::now().timestamp();
    let schedule = schedule_when(&server, &id, |schedule| schedule.next_tick_at.unwrap().seconds > now).await;
    let made = ticks(&jobs(&server.database, &id).await);
    assert!(made.len() >= 2_400, "{}", made.len());
    assert_eq!(made[0], from);
    assert!(made.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(10)));
    assert_eq!(schedule.missed_ticks, 0);
    server.stop().await;
}

#[on_both]
async fn a_tick_is_left_out_while_a_job_is_active(backend: Backend) {
    let server = TestServer::start(backend).await;
    let schedule = pb::JobSchedule { skip_if_active: true, ..cron("s", "* * * * * *") };
    let id = create(&server, schedule).await.id;
    let mut workers = JobWorkerServiceClient::new(server.channel.clone());
    let one_more = async || {
        let missed = get(&server, &id).await.missed_ticks;
        schedule_when(&server, &id, |schedule| schedule.missed_ticks > missed).await;
    };
    for number in 1..=3 {
        one_more().await;
        let made = jobs(&server.database, &id).await;
        assert_eq!(made.len(), number, "one is queued, and none was made beside it");
        let last = made.last().unwrap();
        assert_eq!(last.status, JobStatus::Queued);
        let claim = pb::ClaimJobsRequest {
            worker_id: "w".into(),
            lease_duration: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            ..Default::default()
        };
        let claimed = workers.claim_jobs(claim).await.unwrap().into_inner().jobs.remove(0);
        one_more().await;
        assert_eq!(jobs(&server.database, &id).await.len(), number, "nor while it runs");
        let (job_id, lease_id) = (last.id.to_string(), claimed.lease_id);
        match number {
            1 => {
                let completions = vec![pb::JobCompletion { job_id, lease_id, result: None }];
                workers.complete_jobs(pb::CompleteJobsRequest { completions }).await.unwrap();
            }
            2 => {
                let fail = pb::FailJobRequest {
                    job_id,
                    lease_id,
                    error_message: "no luck".into(),
                    retryable: Some(false),
                    ..Default::default()
                };
                workers.fail_job(fail).await.unwrap();
            }
            _ => {
                let cancel = pb::CancelJobRequest { id: job_id.clone(), ..Default::default() };
                let mut jobs = JobServiceClient::new(server.channel.clone());
                jobs.cancel_job(cancel).await.unwrap();
                let given_up = pb::AcknowledgeJobCancellationRequest { job_id, lease_id };
                workers.acknowledge_job_cancellation(given_up).await.unwrap();
            }
        }
        let last = last.id.to_string();
        schedule_when(&server, &id, |schedule| schedule.last_job_id.as_ref() != Some(&last)).await;
    }
    server.stop().await;
}

#[on_both]
async fn a_tick_that_has_a_job_gets_no_other_one(backend: Backend) {
    let server = TestServer::start(backend).await;
    let schedule = pb::JobSchedule { missed_policy: MissedPolicy::RunAll.into(), ..cron("s", "* * * * *") };
    let id = create(&server, schedule).await.id;
    let from = minute(watchpost::entity::now()) - TimeDelta::minutes(5);
    let db = server.database.connect().await;
    let there = job::ActiveModel {
        job_type: Set("t".into()),
        status: Set(JobStatus::Completed),
        schedule_id: Set(Some(id.parse().unwrap())),
        tick_at: Set(Some(from + TimeDelta::minutes(1))),
        ..Default::default()
    };
    let there = there.insert(&db).await.unwrap();
    db.close().await.unwrap();
    move_back(&server.database, &id, from).await;
    nudge(&server, &id).await;
    let now = watchpost::entity::now().timestamp();
    schedule_when(&server, &id, |schedule| schedule.next_tick_at.unwrap().seconds > now).await;
    let made = jobs(&server.database, &id).await;
    assert!(made.len() >= 6 && made[1].id == there.id);
    assert!(ticks(&made).windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(1)));
    server.stop().await;
}

#[on_both]
async fn a_schedule_that_cannot_be_used_does_not_hold_up_others(backend: Backend) {
    let server = TestServer::start(backend).await;
    let bad = create(&server, cron("bad", "* * * * * *")).await.id;
    let good = create(&server, cron("good", "* * * * * *")).await.id;
    let db = server.database.connect().await;
    let row = job_schedule::Entity::find_by_id(bad.parse::<Uuid>().unwrap()).one(&db).await.unwrap().unwrap();
    let mut row: job_schedule::ActiveModel = row.into();
    row.cron = Set("soon".into());
    row.update(&db).await.unwrap();
    db.close().await.unwrap();
    let before = get(&server, &good).await.last_tick_at.map_or(0, |at| at.seconds);
    schedule_when(&server, &good, |now| now.last_tick_at.is_some_and(|at| at.seconds > before + 1)).await;
    server.stop().await;
}

#[on_both]
async fn a_schedule_that_is_off_does_not_tick(backend: Backend) {
    let server = TestServer::start(backend).await;
    let off = pb::JobSchedule { enabled: Some(false), ..cron("off", "* * * * * *") };
    let off = create(&server, off).await.id;
    let on = create(&server, cron("on", "* * * * * *")).await.id;
    let last = |schedule: &pb::JobSchedule| schedule.last_tick_at.map(|at| at.seconds);
    let first = last(&schedule_when(&server, &on, |now| now.last_tick_at.is_some()).await);
    schedule_when(&server, &on, |now| last(now) > first.map(|at| at + 1)).await;
    assert!(jobs(&server.database, &off).await.is_empty());
    let request = pb::DeleteJobScheduleRequest { id: on.clone(), expected_version_id: None };
    client(&server).delete_job_schedule(request).await.unwrap();
    let made = jobs(&server.database, &on).await;
    // Then the other one ticks from now on, and what is deleted does not.
    let now = watchpost::entity::now();
    move_back(&server.database, &off, now - TimeDelta::minutes(10)).await;
    let enabled = pb::JobSchedule { id: off.clone(), enabled: Some(true), ..Default::default() };
    update(&server, enabled, &[]).await.unwrap();
    let ticked = schedule_when(&server, &off, |now| now.last_tick_at.is_some()).await;
    assert_eq!(ticked.missed_ticks, 0, "ticks while it was off are not missed");
    assert!(jobs(&server.database, &off).await[0].tick_at > Some(now));
    assert_eq!(jobs(&server.database, &on).await, made);
    server.stop().await;
}

#[on_both]
async fn a_job_is_made_at_once_if_somebody_asks_for_it(backend: Backend) {
    let server = TestServer::start(backend).await;
    let settings = pb::JobType {
        name: "t".into(),
        priority: Some(3),
        max_attempts: Some(9),
        max_rescues: Some(1),
        timeout: seconds(0),
        deadline: seconds(60),
        dead_letter: Some(false),
        ..Default::default()
    };
    let request = pb::UpdateJobTypeRequest { job_type: Some(settings), ..Default::default() };
    JobTypeServiceClient::new(server.channel.clone()).update_job_type(request).await.unwrap();
    let schedule = pb::JobSchedule {
        enabled: Some(false),
        skip_if_active: true,
        payload: object(&json!({"a": [1, null]})),
        ..yearly("s")
    };
    let schedule = create(&server, schedule).await;
    let mut watch = server.watch(topics(&[Topic::Jobs])).await;
    for number in 1..=2 {
        let request = pb::RunJobScheduleRequest { id: schedule.id.clone() };
        let job = client(&server).run_job_schedule(request).await.unwrap().into_inner();
        assert_eq!((job.schedule_id.as_ref(), job.tick_at), (Some(&schedule.id), None));
        assert_eq!((job.priority, job.max_attempts, job.max_rescues), (Some(3), Some(9), Some(1)));
        assert_eq!((job.timeout, job.dead_letter), (None, Some(false)));
        assert_eq!(job.payload, object(&json!({"a": [1, null]})));
        assert_eq!(job.scheduled_at, job.created_at);
        let (deadline, created_at) = (job.deadline_at.unwrap(), job.created_at.unwrap());
        assert_eq!(deadline.seconds - created_at.seconds, 60);
        assert_eq!(created(&mut watch).await[0].id, job.id);
        assert_eq!(jobs(&server.database, &schedule.id).await.len(), number);
    }
    assert_eq!(get(&server, &schedule.id).await, schedule);
    let none = pb::RunJobScheduleRequest { id: NONE.into() };
    not_found(client(&server).run_job_schedule(none).await, "job schedule", NONE);
    refused(client(&server).run_job_schedule(pb::RunJobScheduleRequest::default()).await, "id");
    server.stop().await;
}
