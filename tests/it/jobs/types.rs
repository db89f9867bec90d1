//! `JobTypeService`: what jobs of a type are given that do not say otherwise.

use tonic::{Code, transport::Channel};
use watchpost::pb::{
    self, ChangeKind, Topic, job_schedule_service_client::JobScheduleServiceClient,
    job_type_service_client::JobTypeServiceClient, watch_response::Update,
};

use crate::support::{
    TestServer,
    calls::{Reply, failed, mask, millis, nanos, not_found, refused, seconds, strings, walk},
    connect,
    database::{Backend, on_both},
    eventually, start, topics,
};

fn client(server: &TestServer) -> JobTypeServiceClient<Channel> {
    JobTypeServiceClient::new(server.channel.clone())
}

async fn get(server: &TestServer, name: &str) -> pb::JobType {
    let request = pb::GetJobTypeRequest { name: name.into() };
    client(server).get_job_type(request).await.unwrap().into_inner()
}

async fn update(server: &TestServer, job_type: pb::JobType, paths: &[&str]) -> Reply<pb::JobType> {
    let request =
        pb::UpdateJobTypeRequest { job_type: Some(job_type), update_mask: mask(paths), expected_version_id: None };
    client(server).update_job_type(request).await
}

async fn delete(server: &TestServer, name: &str, expected_version_id: Option<i32>) -> Reply<()> {
    let name = name.into();
    let request = pb::DeleteJobTypeRequest { name, expected_version_id };
    client(server).delete_job_type(request).await
}

async fn list(server: &TestServer, page_size: i32, page_token: String) -> (Vec<String>, String) {
    let request = pb::ListJobTypesRequest { page_size, page_token };
    let page = client(server).list_job_types(request).await.unwrap().into_inner();
    let names = page.job_types.into_iter().map(|of| of.name).collect();
    (names, page.next_page_token)
}

fn named(name: &str) -> pb::JobType {
    pb::JobType { name: name.into(), ..Default::default() }
}

/// What is built in, with this timeout.
fn built_in(name: &str, timeout: i64) -> pb::JobType {
    pb::JobType {
        priority: Some(2),
        max_attempts: Some(3),
        max_rescues: Some(3),
        timeout: seconds(timeout),
        retry_initial_delay: seconds(1),
        retry_max_delay: seconds(30),
        retry_multiplier: Some(2.0),
        retry_jitter: Some(0.25),
        dead_letter: Some(true),
        built_in: true,
        ..named(name)
    }
}

#[on_both]
async fn a_type_without_settings_has_what_is_built_in(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (name, timeout) in [
        ("ai_analysis", 300),
        ("export", 1_800),
        ("cleanup", 600),
        ("retention", 3_600),
        ("backup", 7_200),
        ("whatever", 600),
    ] {
        assert_eq!(get(&server, name).await, built_in(name, timeout));
    }
    server.stop().await;
}

#[on_both]
async fn settings_are_changed_one_by_one_and_taken_away(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut expected = built_in("export", 1_800);
    expected.built_in = false;
    for (sent, paths, settings, change) in [
        (
            pb::JobType { priority: Some(0), ..named("export") },
            &[][..],
            &["priority"][..],
            &(|it: &mut pb::JobType| it.priority = Some(0)) as &dyn Fn(&mut pb::JobType),
        ),
        (
            pb::JobType { timeout: seconds(0), deadline: seconds(1), priority: Some(4), ..named("export") },
            &["timeout", "deadline"],
            &["priority", "timeout", "deadline"],
            &|it| (it.timeout, it.deadline) = (seconds(0), seconds(1)),
        ),
        (
            pb::JobType {
                retry_initial_delay: seconds(0),
                retry_max_delay: seconds(604_800),
                retry_multiplier: Some(10.0),
                retry_jitter: Some(0.0),
                dead_letter: Some(false),
                description: Some("ü".repeat(1_000)),
                ..named("export")
            },
            &[],
            &[
                "description",
                "priority",
                "timeout",
                "deadline",
                "retry_initial_delay",
                "retry_max_delay",
                "retry_multiplier",
                "retry_jitter",
                "dead_letter",
            ],
            &|it| {
                it.retry_initial_delay = seconds(0);
                it.retry_max_delay = seconds(604_800);
                it.retry_multiplier = Some(10.0);
                it.retry_jitter = Some(0.0);
                it.dead_letter = Some(false);
                it.description = Some("ü".repeat(1_000));
            },
        ),
        (
            pb::JobType { max_attempts: Some(1_000), max_rescues: Some(0), ..named("export") },
            &["*"],
            &["max_attempts", "max_rescues"],
            &|it| {
                *it = pb::JobType {
                    max_attempts: Some(1_000),
                    max_rescues: Some(0),
                    built_in: false,
                    created_at: it.created_at,
                    version_id: it.version_id,
                    ..built_in("export", 1_800)
                }
            },
        ),
    ] {
        change(&mut expected);
        expected.settings = strings(settings);
        expected.version_id += 1;
        let updated = update(&server, sent, paths).await.unwrap().into_inner();
        expected.created_at = expected.created_at.or(updated.created_at);
        expected.updated_at = updated.updated_at;
        assert_eq!(updated, expected);
        assert_eq!(get(&server, "export").await, expected);
    }
    let same = update(&server, pb::JobType { max_rescues: Some(0), ..named("export") }, &[]).await;
    assert_eq!(same.unwrap().into_inner(), expected, "nothing has changed");
    delete(&server, "export", None).await.unwrap();
    assert_eq!(get(&server, "export").await, built_in("export", 1_800));
    not_found(delete(&server, "export", None).await, "job type", "export");
    server.stop().await;
}

#[on_both]
async fn what_a_type_cannot_have_is_refused_by_its_field(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (sent, field) in [
        (named(""), "job_type.name"),
        (named(" "), "job_type.name"),
        (named(&"x".repeat(51)), "job_type.name"),
        (pb::JobType { description: Some("x".repeat(1_001)), ..named("t") }, "job_type.description"),
        (pb::JobType { priority: Some(5), ..named("t") }, "job_type.priority"),
        (pb::JobType { priority: Some(-1), ..named("t") }, "job_type.priority"),
        (pb::JobType { max_attempts: Some(0), ..named("t") }, "job_type.max_attempts"),
        (pb::JobType { max_rescues: Some(1_001), ..named("t") }, "job_type.max_rescues"),
        (pb::JobType { timeout: millis(999), ..named("t") }, "job_type.timeout"),
        (pb::JobType { timeout: seconds(-1), ..named("t") }, "job_type.timeout"),
        (pb::JobType { timeout: nanos(1), ..named("t") }, "job_type.timeout"),
        (pb::JobType { timeout: nanos(1_000_000_000), ..named("t") }, "job_type.timeout"),
        (pb::JobType { timeout: millis(2_592_000_001), ..named("t") }, "job_type.timeout"),
        (pb::JobType { deadline: seconds(0), ..named("t") }, "job_type.deadline"),
        (pb::JobType { retry_initial_delay: nanos(-1), ..named("t") }, "job_type.retry_initial_delay"),
        (pb::JobType { retry_initial_delay: nanos(999_999), ..named("t") }, "job_type.retry_initial_delay"),
        (pb::JobType { retry_max_delay: millis(604_800_001), ..named("t") }, "job_type.retry_max_delay"),
        (pb::JobType { retry_multiplier: Some(0.5), ..named("t") }, "job_type.retry_multiplier"),
        (pb::JobType { retry_multiplier: Some(f64::NAN), ..named("t") }, "job_type.retry_multiplier"),
        (pb::JobType { retry_jitter: Some(1.5), ..named("t") }, "job_type.retry_jitter"),
    ] {
        refused(update(&server, sent, &[]).await, field);
    }
    for path in ["name", "version_id", "built_in", "settings", "nope"] {
        refused(update(&server, named("t"), &[path]).await, "update_mask");
    }
    refused(client(&server).update_job_type(pb::UpdateJobTypeRequest::default()).await, "job_type");
    refused(client(&server).get_job_type(pb::GetJobTypeRequest::default()).await, "name");
    refused(delete(&server, "", None).await, "name");
    assert!(get(&server, "t").await.built_in);
    server.stop().await;
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    let update = async |expected_version_id, priority| {
        let job_type = Some(pb::JobType { priority: Some(priority), ..named("t") });
        let request = pb::UpdateJobTypeRequest { job_type, update_mask: None, expected_version_id };
        client(&server).update_job_type(request).await
    };
    failed(update(Some(1), 1).await, Code::Aborted, "STALE_VERSION");
    assert_eq!(update(Some(0), 1).await.unwrap().into_inner().version_id, 1);
    for expected in [0, 2, -1] {
        failed(update(Some(expected), 3).await, Code::Aborted, "STALE_VERSION");
        failed(delete(&server, "t", Some(expected)).await, Code::Aborted, "STALE_VERSION");
    }
    assert_eq!(update(Some(1), 4).await.unwrap().into_inner().version_id, 2);
    delete(&server, "t", Some(2)).await.unwrap();
    server.stop().await;
}

#[on_both]
async fn types_are_listed_by_name_with_those_that_are_built_in(backend: Backend) {
    let server = TestServer::start(backend).await;
    for name in ["Zebra", "ant", "export", "é", "cleanup", "zebra"] {
        update(&server, pb::JobType { priority: Some(1), ..named(name) }, &[]).await.unwrap();
    }
    let expected = ["Zebra", "ai_analysis", "ant", "backup", "cleanup", "export", "retention", "zebra", "é"];
    assert_eq!(list(&server, 0, String::new()).await, (strings(&expected), String::new()));
    walk(expected.len(), async |size, token| list(&server, size, token).await).await;
    server.stop().await;
}

#[on_both]
async fn changes_are_announced_with_what_is_in_force(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[Topic::JobTypes])).await;
    let first = update(&server, pb::JobType { priority: Some(1), ..named("t") }, &[]).await.unwrap();
    let same = update(&server, pb::JobType { priority: Some(1), ..named("t") }, &[]).await.unwrap();
    assert_eq!(same.into_inner(), *first.get_ref());
    let second = update(&server, pb::JobType { priority: Some(2), ..named("t") }, &[]).await.unwrap();
    delete(&server, "t", None).await.unwrap();
    for (kind, expected) in [
        (ChangeKind::Created, first.into_inner()),
        (ChangeKind::Updated, second.into_inner()),
        (ChangeKind::Deleted, built_in("t", 600)),
    ] {
        let Update::JobType(change) = watch.update().await else { panic!("not a job type") };
        assert_eq!((change.kind(), change.job_type), (kind, Some(expected)));
    }
    server.stop().await;
}

#[on_both]
async fn many_make_settings_at_the_same_time(backend: Backend) {
    let server = TestServer::start(backend).await;
    let calls = (0..8).map(|attempts| {
        let mut client = client(&server);
        let job_type = Some(pb::JobType { max_attempts: Some(attempts + 1), ..named("t") });
        let request = pb::UpdateJobTypeRequest { job_type, ..Default::default() };
        tokio::spawn(async move { client.update_job_type(request).await.unwrap().into_inner() })
    });
    let mut versions = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        versions.push(call.await.unwrap().version_id);
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=8).collect::<Vec<_>>());
    server.stop().await;
}

/// The priority that a job of the type `t` is given by this process.
async fn given(channel: &Channel, schedule_id: &str) -> Option<i32> {
    let request = pb::RunJobScheduleRequest { id: schedule_id.into() };
    let job = JobScheduleServiceClient::new(channel.clone()).run_job_schedule(request).await;
    job.unwrap().into_inner().priority
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_processes_learn_of_a_change() {
    let server = TestServer::start(Backend::Postgres).await;
    let other = start(server.database.url(), |_| {}).await;
    let channel = connect(&format!("http://{}", other.address)).await;
    let id = super::schedules::create(&server, super::schedules::yearly("s")).await.id;
    assert_eq!(given(&channel, &id).await, Some(2));
    update(&server, pb::JobType { priority: Some(4), ..named("t") }, &[]).await.unwrap();
    assert_eq!(given(&server.channel, &id).await, Some(4), "at once where it was changed");
    eventually("the other process learns of it", async || given(&channel, &id).await == Some(4)).await;
    drop(channel);
    assert!(other.stop().await);
    server.stop().await;
}
