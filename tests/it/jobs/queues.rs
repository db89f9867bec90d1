//! `JobQueueService`: settings of queues, pauses and numbers.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, EntityTrait};
use tonic::{Code, transport::Channel};
use watchpost::{
    entity::job::{self, JobStatus},
    pb::{self, ChangeKind, Topic, job_queue_service_client::JobQueueServiceClient, watch_response::Update},
};

use crate::support::{
    TestServer,
    calls::{Reply, failed, mask, metadata, not_found, refused, seconds, strings, walk},
    database::{Backend, on_both},
    topics,
};

fn client(server: &TestServer) -> JobQueueServiceClient<Channel> {
    JobQueueServiceClient::new(server.channel.clone())
}

fn named(name: &str) -> pb::JobQueue {
    pb::JobQueue { name: name.into(), ..Default::default() }
}

async fn get(server: &TestServer, name: &str) -> Reply<pb::JobQueue> {
    client(server).get_job_queue(pb::GetJobQueueRequest { name: name.into() }).await
}

async fn update(server: &TestServer, queue: pb::JobQueue, paths: &[&str]) -> Reply<pb::JobQueue> {
    let request =
        pb::UpdateJobQueueRequest { job_queue: Some(queue), update_mask: mask(paths), expected_version_id: None };
    client(server).update_job_queue(request).await
}

async fn pause(server: &TestServer, name: &str, actor: &str, reason: &str) -> Reply<pb::JobQueue> {
    let request = pb::PauseJobQueueRequest { name: name.into(), actor: actor.into(), reason: reason.into() };
    client(server).pause_job_queue(request).await
}

async fn resume(server: &TestServer, name: &str) -> Reply<pb::JobQueue> {
    client(server).resume_job_queue(pb::ResumeJobQueueRequest { name: name.into() }).await
}

async fn delete(server: &TestServer, name: &str, expected_version_id: Option<i32>) -> Reply<()> {
    let name = name.into();
    let request = pb::DeleteJobQueueRequest { name, expected_version_id };
    client(server).delete_job_queue(request).await
}

async fn stats(server: &TestServer, queue_name: &str) -> Vec<pb::QueueStats> {
    let queue_name = queue_name.into();
    let request = pb::GetQueueStatsRequest { queue_name, window: None };
    client(server).get_queue_stats(request).await.unwrap().into_inner().queues
}

/// Puts a job into a queue beside the server.
async fn put(server: &TestServer, queue: &str, status: JobStatus, scheduled_at: DateTime<Utc>) -> job::Model {
    let db = server.database.connect().await;
    let job = job::ActiveModel {
        job_type: Set("t".into()),
        status: Set(status),
        queue_name: Set(Some(queue.into())),
        scheduled_at: Set(Some(scheduled_at)),
        created_at: Set(ago(3_600)),
        ..Default::default()
    };
    let job = job.insert(&db).await.unwrap();
    db.close().await.unwrap();
    job
}

fn ago(seconds: i64) -> DateTime<Utc> {
    watchpost::entity::now() - TimeDelta::seconds(seconds)
}

#[on_both]
async fn a_queue_gets_settings_when_they_are_changed(backend: Backend) {
    let server = TestServer::start(backend).await;
    not_found(get(&server, "a").await, "job queue", "a");
    let first = update(&server, pb::JobQueue { max_running: Some(1), ..named("a") }, &[]).await.unwrap().into_inner();
    let mut expected = pb::JobQueue {
        max_running: Some(1),
        created_at: first.created_at,
        updated_at: first.created_at,
        version_id: 1,
        ..named("a")
    };
    assert_eq!(first, expected);
    for (sent, paths, change) in [
        (
            pb::JobQueue { description: Some("ü".repeat(1_000)), ..named("a") },
            &[][..],
            &(|it: &mut pb::JobQueue| it.description = Some("ü".repeat(1_000))) as &dyn Fn(&mut pb::JobQueue),
        ),
        (
            pb::JobQueue { max_running_per_key: Some(1_000_000), ..named("a") },
            &["max_running_per_key", "max_running"],
            &|it| (it.max_running, it.max_running_per_key) = (None, Some(1_000_000)),
        ),
        (named("a"), &["*"], &|it| (it.description, it.max_running_per_key) = (None, None)),
    ] {
        change(&mut expected);
        expected.version_id += 1;
        let updated = update(&server, sent, paths).await.unwrap().into_inner();
        expected.updated_at = updated.updated_at;
        assert_eq!(updated, expected, "{paths:?}");
        assert_eq!(get(&server, "a").await.unwrap().into_inner(), expected);
    }
    assert_eq!(update(&server, named("a"), &[]).await.unwrap().into_inner(), expected, "nothing has changed");
    server.stop().await;
}

#[on_both]
async fn a_queue_is_paused_and_resumed(backend: Backend) {
    let server = TestServer::start(backend).await;
    not_found(resume(&server, "a").await, "job queue", "a");
    let paused = pause(&server, "a", "ann", "work on the disks").await.unwrap().into_inner();
    let expected = pb::JobQueue {
        paused: true,
        paused_at: paused.paused_at,
        paused_by: Some("ann".into()),
        pause_reason: Some("work on the disks".into()),
        created_at: paused.created_at,
        updated_at: paused.updated_at,
        version_id: 1,
        ..named("a")
    };
    assert!(paused.paused_at.is_some());
    assert_eq!(paused, expected);
    assert_eq!(pause(&server, "a", "bob", "me too").await.unwrap().into_inner(), paused, "it is paused");
    let limited = update(&server, pb::JobQueue { max_running: Some(2), ..named("a") }, &[]).await.unwrap().into_inner();
    assert!(limited.paused && limited.version_id == 2);
    let resumed = resume(&server, "a").await.unwrap().into_inner();
    let expected = pb::JobQueue {
        max_running: Some(2),
        created_at: paused.created_at,
        updated_at: resumed.updated_at,
        version_id: 3,
        ..named("a")
    };
    assert_eq!(resumed, expected);
    assert_eq!(resume(&server, "a").await.unwrap().into_inner(), resumed);
    let paused = pause(&server, "a", "", "").await.unwrap().into_inner();
    assert_eq!((paused.paused_by.as_deref(), paused.pause_reason), (Some("ip:127.0.0.1"), None));
    server.stop().await;
}

#[on_both]
async fn what_a_queue_cannot_have_is_refused_by_its_field(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (sent, field) in [
        (named(""), "job_queue.name"),
        (named("\t"), "job_queue.name"),
        (named(&"x".repeat(101)), "job_queue.name"),
        (pb::JobQueue { description: Some("x".repeat(1_001)), ..named("q") }, "job_queue.description"),
        (pb::JobQueue { max_running: Some(0), ..named("q") }, "job_queue.max_running"),
        (pb::JobQueue { max_running: Some(1_000_001), ..named("q") }, "job_queue.max_running"),
        (pb::JobQueue { max_running_per_key: Some(-1), ..named("q") }, "job_queue.max_running_per_key"),
    ] {
        refused(update(&server, sent, &[]).await, field);
    }
    for path in ["paused", "paused_by", "name", "version_id", "nope"] {
        refused(update(&server, named("q"), &[path]).await, "update_mask");
    }
    refused(client(&server).update_job_queue(pb::UpdateJobQueueRequest::default()).await, "job_queue");
    refused(pause(&server, "", "", "").await, "name");
    refused(pause(&server, "q", &"x".repeat(101), "").await, "actor");
    refused(pause(&server, "q", "", &"x".repeat(1_001)).await, "reason");
    for reply in [get(&server, "").await, resume(&server, "").await] {
        refused(reply, "name");
    }
    refused(delete(&server, "", None).await, "name");
    for seconds in [0, -1, 2_678_401] {
        let window = Some(prost_types::Duration { seconds, nanos: 0 });
        let request = pb::GetQueueStatsRequest { queue_name: String::new(), window };
        refused(client(&server).get_queue_stats(request).await, "window");
    }
    not_found(get(&server, "q").await, "job queue", "q");
    server.stop().await;
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    let update = async |expected_version_id, limit| {
        let job_queue = Some(pb::JobQueue { max_running: Some(limit), ..named("q") });
        let request = pb::UpdateJobQueueRequest { job_queue, update_mask: None, expected_version_id };
        client(&server).update_job_queue(request).await
    };
    failed(update(Some(1), 1).await, Code::Aborted, "STALE_VERSION");
    assert_eq!(update(Some(0), 1).await.unwrap().into_inner().version_id, 1);
    for expected in [0, 2] {
        failed(update(Some(expected), 2).await, Code::Aborted, "STALE_VERSION");
        failed(delete(&server, "q", Some(expected)).await, Code::Aborted, "STALE_VERSION");
    }
    assert_eq!(get(&server, "q").await.unwrap().into_inner().max_running, Some(1));
    assert_eq!(update(Some(1), 2).await.unwrap().into_inner().version_id, 2);
    server.stop().await;
}

#[on_both]
async fn settings_are_not_deleted_while_there_is_work(backend: Backend) {
    let server = TestServer::start(backend).await;
    pause(&server, "q", "ann", "").await.unwrap();
    put(&server, "q", JobStatus::Completed, ago(60)).await;
    put(&server, "other", JobStatus::Queued, ago(60)).await;
    let queued = put(&server, "q", JobStatus::Queued, ago(60)).await;
    let running = put(&server, "q", JobStatus::Running, ago(60)).await;
    let status = failed(delete(&server, "q", None).await, Code::FailedPrecondition, "IN_USE");
    assert_eq!(metadata(&status, "used_by"), format!("{},{}", queued.id, running.id));
    let db = server.database.connect().await;
    for job in [queued, running] {
        job::Entity::delete_by_id(job.id).exec(&db).await.unwrap();
    }
    db.close().await.unwrap();
    delete(&server, "q", Some(1)).await.unwrap();
    not_found(get(&server, "q").await, "job queue", "q");
    not_found(delete(&server, "q", None).await, "job queue", "q");
    server.stop().await;
}

#[on_both]
async fn queues_are_listed_by_name(backend: Backend) {
    let server = TestServer::start(backend).await;
    for name in ["é", "b", "Zoo", "a", "zoo"] {
        update(&server, pb::JobQueue { max_running: Some(1), ..named(name) }, &[]).await.unwrap();
    }
    pause(&server, "b", "ann", "").await.unwrap();
    let list = async |filter: pb::JobQueueFilter, page_size, page_token| {
        let request = pb::ListJobQueuesRequest { filter: Some(filter), page_size, page_token };
        let page = client(&server).list_job_queues(request).await.unwrap().into_inner();
        let names: Vec<_> = page.job_queues.into_iter().map(|queue| queue.name).collect();
        (names, page.next_page_token)
    };
    let all = list(pb::JobQueueFilter::default(), 0, String::new()).await;
    assert_eq!(all, (strings(&["Zoo", "a", "b", "zoo", "é"]), String::new()));
    walk(5, async |size, token| list(pb::JobQueueFilter::default(), size, token).await).await;
    for (paused, name, expected) in [
        (Some(true), "", &["b"][..]),
        (Some(false), "", &["Zoo", "a", "zoo", "é"]),
        (None, "ZO", &["Zoo", "zoo"]),
        (Some(true), "zo", &[]),
        (None, "%", &[]),
    ] {
        let filter = pb::JobQueueFilter { paused, name: name.into() };
        assert_eq!(list(filter, 0, String::new()).await.0, strings(expected), "{paused:?} {name}");
    }
    server.stop().await;
}

#[on_both]
async fn changes_are_announced(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[Topic::JobQueues])).await;
    let first = pause(&server, "q", "ann", "").await.unwrap().into_inner();
    pause(&server, "q", "bob", "").await.unwrap();
    let second = update(&server, pb::JobQueue { max_running: Some(1), ..named("q") }, &[]).await.unwrap().into_inner();
    update(&server, pb::JobQueue { max_running: Some(1), ..named("q") }, &[]).await.unwrap();
    let third = resume(&server, "q").await.unwrap().into_inner();
    resume(&server, "q").await.unwrap();
    delete(&server, "q", None).await.unwrap();
    for (kind, expected) in [
        (ChangeKind::Created, &first),
        (ChangeKind::Updated, &second),
        (ChangeKind::Updated, &third),
        (ChangeKind::Deleted, &third),
    ] {
        let Update::JobQueue(change) = watch.update().await else { panic!("not a job queue") };
        assert_eq!((change.kind(), change.job_queue.as_ref()), (kind, Some(expected)));
    }
    server.stop().await;
}

#[on_both]
async fn the_numbers_of_a_queue_are_those_of_its_jobs(backend: Backend) {
    let server = TestServer::start(backend).await;
    assert_eq!(stats(&server, "").await, []);
    let none = pb::QueueStats { queue_name: "none".into(), ..Default::default() };
    assert_eq!(stats(&server, "none").await, [none]);
    pause(&server, "idle", "ann", "").await.unwrap();
    put(&server, "busy", JobStatus::Queued, ago(100)).await;
    put(&server, "busy", JobStatus::Queued, ago(50)).await;
    put(&server, "busy", JobStatus::Queued, ago(-1_000)).await;
    put(&server, "busy", JobStatus::Running, ago(300)).await;
    let db = server.database.connect().await;
    for (waited, ran) in [(1, 10), (2, 20), (3, 30)] {
        let job = put(&server, "busy", JobStatus::Completed, ago(200)).await;
        let started_at = job.scheduled_at.unwrap() + TimeDelta::seconds(waited);
        let mut job: job::ActiveModel = job.into();
        job.started_at = Set(Some(started_at));
        job.completed_at = Set(Some(started_at + TimeDelta::seconds(ran)));
        job.update(&db).await.unwrap();
    }
    db.close().await.unwrap();
    let all = stats(&server, "").await;
    let names: Vec<_> = all.iter().map(|of| (of.queue_name.as_str(), of.paused)).collect();
    assert_eq!(names, [("busy", false), ("idle", true)]);
    let busy = &all[0];
    let oldest = busy.oldest_queued_age.unwrap();
    assert!((100..160).contains(&oldest.seconds), "{oldest:?}");
    let of = pb::QueueTypeStats {
        job_type: "t".into(),
        finished: 3,
        wait_p50: seconds(2),
        wait_p95: seconds(3),
        run_p50: seconds(20),
        run_p95: seconds(30),
    };
    let expected = pb::QueueStats {
        queue_name: "busy".into(),
        paused: false,
        depth: 2,
        scheduled: 1,
        running: 1,
        oldest_queued_age: Some(oldest),
        finished: 3,
        finished_per_second: 3.0 / 3_600.0,
        by_type: vec![of],
    };
    assert_eq!(*busy, expected);
    let one = stats(&server, "busy").await;
    let oldest_queued_age = one[0].oldest_queued_age;
    assert_eq!(one, [pb::QueueStats { oldest_queued_age, ..expected }]);
    assert!(stats(&server, "idle").await[0].paused);
    server.stop().await;
}
