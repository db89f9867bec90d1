//! Schedules as resources: created, got, listed, updated, deleted.

use serde_json::json;
use tonic::Code;
use watchpost::pb::{self, ChangeKind, MissedPolicy, Topic, watch_response::Update};

use super::{NONE, client, create, cron, get, try_create, update, yearly};
use crate::support::{
    TestServer,
    calls::{Reply, failed, not_found, object, refused, strings, walk},
    database::{Backend, on_both},
    field, topics,
};

async fn delete(server: &TestServer, id: &str, expected_version_id: Option<i32>) -> Reply<()> {
    let id = id.into();
    let request = pb::DeleteJobScheduleRequest { id, expected_version_id };
    client(server).delete_job_schedule(request).await
}

/// `sent` with the defaults, and with what the server decides of `schedule`.
fn kept(sent: pb::JobSchedule, schedule: &pb::JobSchedule) -> pb::JobSchedule {
    let or = |text: String, default: &str| {
        if text.is_empty() { default.into() } else { text }
    };
    let missed_policy = if sent.missed_policy == 0 { MissedPolicy::RunOnce.into() } else { sent.missed_policy };
    pb::JobSchedule {
        id: schedule.id.clone(),
        enabled: Some(sent.enabled.unwrap_or(true)),
        time_zone: or(sent.time_zone, "UTC"),
        queue_name: or(sent.queue_name, "default"),
        missed_policy,
        next_tick_at: schedule.next_tick_at,
        created_at: schedule.created_at,
        updated_at: schedule.updated_at,
        version_id: schedule.version_id,
        last_tick_at: None,
        last_job_id: None,
        missed_ticks: 0,
        ..sent
    }
}

#[on_both]
async fn a_schedule_is_kept_as_it_was_sent(backend: Backend) {
    let server = TestServer::start(backend).await;
    for sent in [
        yearly("plain"),
        pb::JobSchedule {
            description: Some("ü".repeat(1_000)),
            enabled: Some(false),
            time_zone: "Europe/Berlin".into(),
            missed_policy: MissedPolicy::RunAll.into(),
            queue_name: "q".repeat(100),
            priority: Some(0),
            max_attempts: Some(1_000),
            payload: object(&json!({"days": 30, "tables": ["logs"]})),
            skip_if_active: true,
            ..yearly(&"ü".repeat(100))
        },
        // What is only output is not taken from the client.
        pb::JobSchedule {
            id: NONE.into(),
            version_id: 9,
            missed_ticks: 7,
            last_job_id: Some(NONE.into()),
            ..yearly("output")
        },
    ] {
        let schedule = create(&server, sent.clone()).await;
        assert!(schedule.id.len() == 36 && schedule.id != NONE);
        assert_eq!((schedule.version_id, schedule.updated_at), (1, schedule.created_at));
        assert_eq!(schedule.next_tick_at.is_some(), schedule.enabled());
        assert_eq!(schedule, kept(sent, &schedule));
        assert_eq!(get(&server, &schedule.id).await, schedule);
    }
    let none = pb::GetJobScheduleRequest { id: NONE.into() };
    not_found(client(&server).get_job_schedule(none).await, "job schedule", NONE);
    server.stop().await;
}

#[on_both]
async fn what_a_schedule_cannot_have_is_refused_by_its_field(backend: Backend) {
    let server = TestServer::start(backend).await;
    let payload = object(&json!({"text": "x".repeat(1 << 20)}));
    for (sent, field) in [
        (yearly(""), "name"),
        (yearly(" "), "name"),
        (yearly(&"x".repeat(101)), "name"),
        (pb::JobSchedule { description: Some("x".repeat(1_001)), ..yearly("s") }, "description"),
        (cron("s", ""), "cron"),
        (cron("s", "60 * * * *"), "cron"),
        (cron("s", "0 0 30 2 *"), "cron"),
        (cron("s", &"1,".repeat(101)), "cron"),
        (pb::JobSchedule { time_zone: "Mars/Base".into(), ..yearly("s") }, "time_zone"),
        (pb::JobSchedule { missed_policy: 9, ..yearly("s") }, "missed_policy"),
        (pb::JobSchedule { job_type: String::new(), ..yearly("s") }, "job_type"),
        (pb::JobSchedule { job_type: "x".repeat(51), ..yearly("s") }, "job_type"),
        (pb::JobSchedule { queue_name: " ".into(), ..yearly("s") }, "queue_name"),
        (pb::JobSchedule { priority: Some(5), ..yearly("s") }, "priority"),
        (pb::JobSchedule { max_attempts: Some(0), ..yearly("s") }, "max_attempts"),
        (pb::JobSchedule { payload, ..yearly("s") }, "payload"),
    ] {
        refused(try_create(&server, sent).await, &format!("job_schedule.{field}"));
    }
    let missing = client(&server).create_job_schedule(pb::CreateJobScheduleRequest::default()).await;
    refused(missing, "job_schedule");
    create(&server, yearly("s")).await;
    let taken = failed(try_create(&server, yearly("s")).await, Code::AlreadyExists, "ALREADY_EXISTS");
    assert_eq!(field(&taken), "job_schedule.name");
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names(backend: Backend) {
    let server = TestServer::start(backend).await;
    let first = create(&server, pb::JobSchedule { priority: Some(1), ..yearly("s") }).await;
    let only = pb::JobSchedule { id: first.id.clone(), ..Default::default() };
    assert_eq!(update(&server, only.clone(), &[]).await.unwrap().into_inner(), first, "nothing has changed");
    let mut expected = first.clone();
    for (sent, paths, change) in [
        (
            pb::JobSchedule { name: "t".into(), ..only.clone() },
            &[][..],
            &(|it: &mut pb::JobSchedule| it.name = "t".into()) as &dyn Fn(&mut pb::JobSchedule),
        ),
        (pb::JobSchedule { payload: object(&json!({"a": 1})), skip_if_active: true, ..only.clone() }, &[], &|it| {
            (it.payload, it.skip_if_active) = (object(&json!({"a": 1})), true);
        }),
        (only.clone(), &["payload", "skip_if_active", "priority"], &|it| {
            (it.payload, it.skip_if_active, it.priority) = (None, false, None);
        }),
        (
            pb::JobSchedule { missed_policy: 1, max_attempts: Some(9), job_type: "u".into(), ..only.clone() },
            &[],
            &|it| (it.missed_policy, it.max_attempts, it.job_type) = (1, Some(9), "u".into()),
        ),
        (
            pb::JobSchedule { queue_name: "q".into(), description: Some("d".into()), ..only.clone() },
            &["queue_name", "description", "missed_policy"],
            &|it| (it.queue_name, it.description, it.missed_policy) = ("q".into(), Some("d".into()), 2),
        ),
    ] {
        change(&mut expected);
        expected.version_id += 1;
        let updated = update(&server, sent, paths).await.unwrap().into_inner();
        expected.updated_at = updated.updated_at;
        assert_eq!(updated, expected, "{paths:?}");
        assert_eq!(get(&server, &first.id).await, expected);
    }
    for path in ["id", "next_tick_at", "missed_ticks", "last_job_id", "version_id", "nope"] {
        refused(update(&server, only.clone(), &[path]).await, "update_mask");
    }
    refused(update(&server, only.clone(), &["name"]).await, "job_schedule.name");
    refused(update(&server, only.clone(), &["cron"]).await, "job_schedule.cron");
    refused(update(&server, yearly("x"), &[]).await, "job_schedule.id");
    create(&server, yearly("other")).await;
    let taken = update(&server, pb::JobSchedule { name: "other".into(), ..only.clone() }, &[]).await;
    assert_eq!(field(&failed(taken, Code::AlreadyExists, "ALREADY_EXISTS")), "job_schedule.name");
    let none = pb::JobSchedule { id: NONE.into(), name: "x".into(), ..Default::default() };
    not_found(update(&server, none, &[]).await, "job schedule", NONE);
    assert_eq!(get(&server, &first.id).await, expected);
    server.stop().await;
}

#[on_both]
async fn the_next_tick_is_worked_out_anew_when_it_may_be_another(backend: Backend) {
    let server = TestServer::start(backend).await;
    let first = create(&server, yearly("s")).await;
    let only = pb::JobSchedule { id: first.id.clone(), ..Default::default() };
    let zone = pb::JobSchedule { time_zone: "Asia/Tokyo".into(), ..only.clone() };
    let tokyo = update(&server, zone, &[]).await.unwrap().into_inner();
    let seconds = |schedule: &pb::JobSchedule| schedule.next_tick_at.map(|at| at.seconds);
    assert_eq!(seconds(&tokyo), seconds(&first).map(|at| at - 9 * 3_600));
    let other = pb::JobSchedule { cron: "17 4 29 2 *".into(), ..only.clone() };
    let later = update(&server, other, &[]).await.unwrap().into_inner();
    assert_eq!(seconds(&later), seconds(&first).map(|at| at - 8 * 3_600));
    let off = pb::JobSchedule { enabled: Some(false), ..only.clone() };
    let off = update(&server, off, &[]).await.unwrap().into_inner();
    assert_eq!(off.next_tick_at, None);
    let on = update(&server, only, &["enabled"]).await.unwrap().into_inner();
    assert_eq!((on.enabled, on.next_tick_at), (Some(true), later.next_tick_at));
    server.stop().await;
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = TestServer::start(backend).await;
    let id = create(&server, yearly("s")).await.id;
    let update = async |expected_version_id, name: &str| {
        let job_schedule = Some(pb::JobSchedule { id: id.clone(), name: name.into(), ..Default::default() });
        let request = pb::UpdateJobScheduleRequest { job_schedule, update_mask: None, expected_version_id };
        client(&server).update_job_schedule(request).await
    };
    assert_eq!(update(Some(1), "a").await.unwrap().into_inner().version_id, 2);
    for expected in [0, 1, 3] {
        failed(update(Some(expected), "b").await, Code::Aborted, "STALE_VERSION");
        failed(delete(&server, &id, Some(expected)).await, Code::Aborted, "STALE_VERSION");
    }
    assert_eq!(get(&server, &id).await.name, "a");
    delete(&server, &id, Some(2)).await.unwrap();
    not_found(delete(&server, &id, None).await, "job schedule", &id);
    server.stop().await;
}

#[on_both]
async fn schedules_are_listed_newest_first(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (name, job_type, queue_name, enabled) in
        [("a", "t", "q", true), ("b", "t", "", false), ("Cat", "u", "q", true), ("dog", "v", "", true)]
    {
        let schedule = pb::JobSchedule {
            job_type: job_type.into(),
            queue_name: queue_name.into(),
            enabled: Some(enabled),
            ..yearly(name)
        };
        create(&server, schedule).await;
    }
    let list = async |filter: pb::JobScheduleFilter, page_size, page_token| {
        let request = pb::ListJobSchedulesRequest { filter: Some(filter), page_size, page_token };
        let page = client(&server).list_job_schedules(request).await.unwrap().into_inner();
        let names: Vec<_> = page.job_schedules.into_iter().map(|schedule| schedule.name).collect();
        (names, page.next_page_token)
    };
    walk(4, async |size, token| list(pb::JobScheduleFilter::default(), size, token).await).await;
    let any = pb::JobScheduleFilter::default;
    for (filter, expected) in [
        (any(), &["dog", "Cat", "b", "a"][..]),
        (pb::JobScheduleFilter { enabled: Some(false), ..any() }, &["b"]),
        (pb::JobScheduleFilter { enabled: Some(true), ..any() }, &["dog", "Cat", "a"]),
        (pb::JobScheduleFilter { job_types: strings(&["u", "v"]), ..any() }, &["dog", "Cat"]),
        (pb::JobScheduleFilter { queue_names: strings(&["q"]), ..any() }, &["Cat", "a"]),
        (pb::JobScheduleFilter { name: "CA".into(), ..any() }, &["Cat"]),
        (pb::JobScheduleFilter { name: "_".into(), ..any() }, &[]),
    ] {
        assert_eq!(list(filter, 0, String::new()).await.0, strings(expected));
    }
    let long = pb::JobScheduleFilter { job_types: strings(&[""]), ..any() };
    let request = pb::ListJobSchedulesRequest { filter: Some(long), ..Default::default() };
    refused(client(&server).list_job_schedules(request).await, "filter.job_types[0]");
    server.stop().await;
}

#[on_both]
async fn changes_are_announced(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut watch = server.watch(topics(&[Topic::JobSchedules])).await;
    let first = create(&server, yearly("s")).await;
    let change = pb::JobSchedule { id: first.id.clone(), name: "t".into(), ..Default::default() };
    let second = update(&server, change.clone(), &[]).await.unwrap().into_inner();
    update(&server, change, &[]).await.unwrap();
    delete(&server, &first.id, None).await.unwrap();
    for (kind, expected) in
        [(ChangeKind::Created, &first), (ChangeKind::Updated, &second), (ChangeKind::Deleted, &second)]
    {
        let Update::JobSchedule(change) = watch.update().await else { panic!("not a schedule") };
        assert_eq!((change.kind(), change.job_schedule.as_ref()), (kind, Some(expected)));
    }
    server.stop().await;
}
