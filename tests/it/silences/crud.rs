//! Silences as resources: created, got, updated, expired.

use tonic::Code;
use watchpost::pb::{self, Severity, SilenceStatus};

use super::{create, expire, get, update};
use crate::support::{
    TestServer, always,
    calls::{at, execute, failed, mask, metadata, not_found, refused, strings},
    database::{Backend, on_both},
    field, in_seconds, quiet,
};

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

async fn server(backend: Backend) -> TestServer {
    let server = TestServer::start(backend).await;
    for id in ["door", "gate"] {
        server.camera(id).await;
    }
    server
}

/// `expected` with what the server decides of `silence`.
fn kept(expected: pb::Silence, silence: &pb::Silence) -> pb::Silence {
    pb::Silence {
        id: silence.id.clone(),
        starts_at: silence.starts_at,
        version_id: silence.version_id,
        created_at: silence.created_at,
        updated_at: silence.updated_at,
        status: silence.status,
        ..expected
    }
}

#[on_both]
async fn a_silence_is_kept_as_it_was_sent(backend: Backend) {
    let server = server(backend).await;
    let rule = server.rule(always("r")).await.id;
    let later = in_seconds(60);
    let everything = pb::Silence { camera_ids: vec![], match_all: true, ..quiet("") };
    for (sent, status) in [
        (quiet("door"), SilenceStatus::Active),
        (everything, SilenceStatus::Active),
        (pb::Silence { starts_at: later, ..quiet("door") }, SilenceStatus::Pending),
        (
            pb::Silence {
                camera_ids: strings(&["gate", "door"]),
                rule_ids: vec![rule],
                severities: vec![Severity::High.into(), Severity::Low.into()],
                created_by: "ü".repeat(100),
                reason: "ü".repeat(1_000),
                ..quiet("")
            },
            SilenceStatus::Active,
        ),
        // What is only output is not taken from the client.
        (
            pb::Silence { id: NONE.into(), version_id: 9, created_at: at(1), status: 3, ..quiet("door") },
            SilenceStatus::Active,
        ),
    ] {
        let silence = create(&server, sent.clone()).await.unwrap().into_inner();
        assert!(silence.id.len() == 36 && silence.id != NONE);
        assert_eq!((silence.version_id, silence.status()), (1, status));
        assert_eq!(silence.updated_at, silence.created_at);
        assert_eq!(silence, kept(sent.clone(), &silence));
        let (from, created) = (silence.starts_at.unwrap(), silence.created_at.unwrap());
        if sent.starts_at.is_some() {
            assert_eq!(silence.starts_at, sent.starts_at);
        } else {
            assert!((created.seconds - from.seconds).abs() <= 1, "{silence:?}");
        }
        assert_eq!(get(&server, &silence.id).await.unwrap().into_inner(), silence);
    }
    // It cannot have held before it was made.
    let early = create(&server, pb::Silence { starts_at: at(1), ..quiet("door") }).await.unwrap().into_inner();
    assert!(early.starts_at.unwrap().seconds > 1_000_000_000);
    server.stop().await;
}

#[on_both]
async fn an_update_changes_what_its_mask_names(backend: Backend) {
    let server = server(backend).await;
    let rule = server.rule(always("r")).await.id;
    let first = server.silence(pb::Silence { starts_at: in_seconds(600), ..quiet("door") }).await;
    let only = pb::Silence { id: first.id.clone(), ..Default::default() };
    let same = update(&server, only.clone(), &[]).await.unwrap().into_inner();
    assert_eq!(same, first, "nothing has changed");
    let (sooner, later) = (in_seconds(60), in_seconds(7_200));
    let mut expected = first.clone();
    for (sent, paths, change) in [
        (
            pb::Silence { reason: "rain".into(), ..only.clone() },
            &[][..],
            &(|it: &mut pb::Silence| it.reason = "rain".into()) as &dyn Fn(&mut pb::Silence),
        ),
        (pb::Silence { ends_at: later, ..only.clone() }, &["ends_at"], &|it| it.ends_at = later),
        (pb::Silence { starts_at: sooner, ..only.clone() }, &[], &|it| it.starts_at = sooner),
        (pb::Silence { rule_ids: vec![rule.clone()], ..only.clone() }, &[], &|it| it.rule_ids = vec![rule.clone()]),
        (only.clone(), &["camera_ids"], &|it| it.camera_ids.clear()),
        (pb::Silence { severities: vec![4], ..only.clone() }, &["severities"], &|it| it.severities = vec![4]),
        (pb::Silence { match_all: true, ..only.clone() }, &["match_all", "rule_ids", "severities"], &|it| {
            it.match_all = true;
            it.rule_ids.clear();
            it.severities.clear();
        }),
    ] {
        change(&mut expected);
        expected.version_id += 1;
        let updated = update(&server, sent, paths).await.unwrap().into_inner();
        assert!(updated.updated_at.unwrap().seconds >= first.updated_at.unwrap().seconds);
        expected.updated_at = updated.updated_at;
        assert_eq!(updated, expected, "{paths:?}");
        assert_eq!(get(&server, &first.id).await.unwrap().into_inner(), expected);
    }
    for path in ["id", "created_by", "created_at", "version_id", "status", "nope"] {
        refused(update(&server, only.clone(), &["reason", path]).await, "update_mask");
    }
    refused(update(&server, only.clone(), &["reason"]).await, "silence.reason");
    refused(update(&server, only.clone(), &["match_all"]).await, "silence.match_all");
    assert_eq!(get(&server, &first.id).await.unwrap().into_inner(), expected);
    server.stop().await;
}

#[on_both]
async fn one_that_has_begun_keeps_its_start(backend: Backend) {
    let server = server(backend).await;
    let first = server.silence(quiet("door")).await;
    let only = pb::Silence { id: first.id.clone(), ..Default::default() };
    let moved = pb::Silence { starts_at: in_seconds(60), ..only.clone() };
    refused(update(&server, moved, &[]).await, "silence.starts_at");
    let kept = pb::Silence { starts_at: first.starts_at, reason: "rain".into(), ..only.clone() };
    assert_eq!(update(&server, kept, &[]).await.unwrap().into_inner().starts_at, first.starts_at);
    let reset = pb::Silence { ends_at: first.ends_at, reason: "snow".into(), ..only };
    let reset = update(&server, reset, &["starts_at", "ends_at", "reason"]).await.unwrap().into_inner();
    assert_eq!((reset.starts_at, reset.reason.as_str()), (first.starts_at, "snow"));
    server.stop().await;
}

#[on_both]
async fn one_that_is_expired_stays_as_it_is(backend: Backend) {
    let server = server(backend).await;
    let active = server.silence(quiet("door")).await;
    let pending = server.silence(pb::Silence { starts_at: in_seconds(600), ..quiet("door") }).await;
    let over = server.silence(quiet("gate")).await;
    execute(
        &server,
        "UPDATE silences SET starts_at = '2026-01-01T00:00:00+00:00', ends_at = '2026-01-02T00:00:00+00:00'
            WHERE camera_ids LIKE '%gate%'"
            .replace(
                "camera_ids LIKE",
                if backend == Backend::Postgres { "camera_ids::text LIKE" } else { "camera_ids LIKE" },
            )
            .as_str(),
    )
    .await;
    for silence in [&active, &pending] {
        let ended = expire(&server, &silence.id).await.unwrap().into_inner();
        let expected = pb::Silence { ends_at: ended.ends_at, updated_at: ended.updated_at, ..silence.clone() };
        assert_eq!(ended, pb::Silence { version_id: 2, ..kept(expected, &ended) });
        assert_eq!((ended.status(), ended.ends_at), (SilenceStatus::Expired, ended.updated_at));
        let starts_at = if silence.id == active.id { active.starts_at } else { ended.ends_at };
        assert_eq!(ended.starts_at, starts_at);
        assert_eq!(get(&server, &silence.id).await.unwrap().into_inner(), ended);
    }
    for id in [&active.id, &pending.id, &over.id] {
        let before = get(&server, id).await.unwrap().into_inner();
        assert_eq!(before.status(), SilenceStatus::Expired);
        let status = failed(expire(&server, id).await, Code::FailedPrecondition, "WRONG_STATUS");
        assert_eq!(metadata(&status, "status"), "EXPIRED");
        let again = pb::Silence { id: id.clone(), ends_at: in_seconds(60), ..Default::default() };
        failed(update(&server, again, &[]).await, Code::FailedPrecondition, "WRONG_STATUS");
        assert_eq!(get(&server, id).await.unwrap().into_inner(), before);
    }
    server.stop().await;
}

#[on_both]
async fn an_unknown_silence_is_not_found(backend: Backend) {
    let server = server(backend).await;
    not_found(get(&server, NONE).await, "silence", NONE);
    not_found(expire(&server, NONE).await, "silence", NONE);
    not_found(update(&server, pb::Silence { id: NONE.into(), ..quiet("door") }, &[]).await, "silence", NONE);
    for id in ["", "x", "01890a5dac96774bbcceb302099a8057"] {
        refused(get(&server, id).await, "id");
        refused(expire(&server, id).await, "id");
        refused(update(&server, pb::Silence { id: id.into(), ..quiet("door") }, &[]).await, "silence.id");
    }
    server.stop().await;
}

#[on_both]
async fn a_stale_version_changes_nothing(backend: Backend) {
    let server = server(backend).await;
    let silence = server.silence(quiet("door")).await;
    let update = async |expected_version_id, reason: &str| {
        let silence = Some(pb::Silence { id: silence.id.clone(), reason: reason.into(), ..Default::default() });
        let request = pb::UpdateSilenceRequest { silence, update_mask: mask(&["reason"]), expected_version_id };
        server.silences().update_silence(request).await
    };
    let expire = async |expected_version_id| {
        let request = pb::ExpireSilenceRequest { id: silence.id.clone(), expected_version_id };
        server.silences().expire_silence(request).await
    };
    assert_eq!(update(Some(1), "a").await.unwrap().into_inner().version_id, 2);
    for expected in [Some(1), Some(3), Some(0), Some(-1)] {
        failed(update(expected, "b").await, Code::Aborted, "STALE_VERSION");
        failed(expire(expected).await, Code::Aborted, "STALE_VERSION");
    }
    let now = get(&server, &silence.id).await.unwrap().into_inner();
    assert_eq!((now.reason.as_str(), now.version_id), ("a", 2));
    assert_eq!(expire(Some(2)).await.unwrap().into_inner().version_id, 3);
    server.stop().await;
}

#[on_both]
async fn a_silence_names_what_there_is(backend: Backend) {
    let server = server(backend).await;
    let rule = server.rule(always("r")).await.id;
    let delete = pb::DeleteCameraRequest { id: "gate".into() };
    let named = server.silence(pb::Silence { rule_ids: vec![rule.clone()], ..quiet("gate") }).await;
    server.cameras().delete_camera(delete).await.unwrap();
    let unknown = |reply, path: &str| {
        let status = failed(reply, Code::FailedPrecondition, "BROKEN_REFERENCE");
        assert_eq!(field(&status), path);
    };
    let cameras = |ids: &[&str]| pb::Silence { camera_ids: strings(ids), ..quiet("") };
    unknown(create(&server, cameras(&["door", "nope"])).await, "silence.camera_ids[1]");
    unknown(create(&server, cameras(&["gate"])).await, "silence.camera_ids[0]");
    let rules = |ids: &[&str]| pb::Silence { camera_ids: vec![], rule_ids: strings(ids), ..quiet("") };
    unknown(create(&server, rules(&[&rule, NONE])).await, "silence.rule_ids[1]");
    create(&server, rules(&[&rule.to_uppercase()])).await.unwrap();
    // What it named before it may go on naming; it may not begin to.
    let request = pb::DeleteAlertRuleRequest { id: rule.clone(), expected_version_id: None };
    server.rules().delete_alert_rule(request).await.unwrap();
    let change = pb::Silence { id: named.id.clone(), reason: "rain".into(), ..Default::default() };
    let changed = update(&server, change, &[]).await.unwrap().into_inner();
    assert_eq!((changed.camera_ids, changed.rule_ids), (named.camera_ids, named.rule_ids));
    unknown(create(&server, rules(&[&rule])).await, "silence.rule_ids[0]");
    let change = pb::Silence { id: named.id, camera_ids: strings(&["gate", "no"]), ..Default::default() };
    unknown(update(&server, change, &[]).await, "silence.camera_ids[1]");
    server.stop().await;
}
