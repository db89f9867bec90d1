//! When a schedule would tick.

use watchpost::pb;

use super::{NONE, client, create, yearly};
use crate::support::{
    TestServer,
    calls::{Reply, at, not_found, refused},
    database::{Backend, on_both},
};

async fn preview(server: &TestServer, request: pb::PreviewJobScheduleRequest) -> Reply<pb::PreviewJobScheduleResponse> {
    client(server).preview_job_schedule(request).await
}

fn asked(cron: &str, time_zone: &str, after: i64, count: i32) -> pb::PreviewJobScheduleRequest {
    pb::PreviewJobScheduleRequest {
        cron: cron.into(),
        time_zone: time_zone.into(),
        after: at(after),
        count,
        ..Default::default()
    }
}

#[on_both]
async fn a_preview_tells_ticks_and_what_clocks_show(backend: Backend) {
    let server = TestServer::start(backend).await;
    // On 29 March 2026 in Berlin, 02:00 becomes 03:00 at 01:00 UTC; on 25 October 03:00 becomes 02:00.
    for (after, expected) in [
        (
            1_774_652_400,
            [
                (1_774_661_400, "2026-03-28T02:30:00+01:00"),
                (1_774_746_000, "2026-03-29T03:00:00+02:00"),
                (1_774_830_600, "2026-03-30T02:30:00+02:00"),
            ],
        ),
        (
            1_792_800_000,
            [
                (1_792_801_800, "2026-10-24T02:30:00+02:00"),
                (1_792_888_200, "2026-10-25T02:30:00+02:00"),
                (1_792_978_200, "2026-10-26T02:30:00+01:00"),
            ],
        ),
    ] {
        let request = asked("30 2 * * *", "Europe/Berlin", after, 3);
        let ticks = preview(&server, request).await.unwrap().into_inner().ticks;
        let expected =
            expected.map(|(seconds, shown)| pb::JobScheduleTick { tick_at: at(seconds), local_time: shown.into() });
        assert_eq!(ticks, expected);
    }
    let defaults = pb::PreviewJobScheduleRequest { cron: "@hourly".into(), ..Default::default() };
    let ticks = preview(&server, defaults).await.unwrap().into_inner().ticks;
    assert_eq!(ticks.len(), 10);
    assert!(ticks[0].local_time.ends_with(":00:00+00:00"), "{ticks:?}");
    let many = preview(&server, asked("* * * * * *", "", 1_000, 1_000)).await.unwrap().into_inner().ticks;
    assert_eq!(many.len(), 1_000);
    assert_eq!((many[0].tick_at, many[999].tick_at), (at(1_001), at(2_000)));
    server.stop().await;
}

#[on_both]
async fn a_preview_of_a_schedule_is_by_what_it_says(backend: Backend) {
    let server = TestServer::start(backend).await;
    let schedule = pb::JobSchedule { time_zone: "Asia/Tokyo".into(), enabled: Some(false), ..yearly("s") };
    let id = create(&server, schedule).await.id;
    let asked = pb::PreviewJobScheduleRequest { id: id.clone(), after: at(0), count: 1, ..Default::default() };
    let ticks = preview(&server, asked.clone()).await.unwrap().into_inner().ticks;
    assert_eq!(ticks[0].local_time, "1972-02-29T03:17:00+09:00");
    refused(preview(&server, pb::PreviewJobScheduleRequest { cron: "@daily".into(), ..asked.clone() }).await, "cron");
    refused(
        preview(&server, pb::PreviewJobScheduleRequest { time_zone: "UTC".into(), ..asked.clone() }).await,
        "time_zone",
    );
    not_found(preview(&server, pb::PreviewJobScheduleRequest { id: NONE.into(), ..asked }).await, "job schedule", NONE);
    server.stop().await;
}

#[on_both]
async fn what_cannot_be_told_is_refused_by_its_field(backend: Backend) {
    let server = TestServer::start(backend).await;
    for (request, field) in [
        (asked("", "", 0, 1), "cron"),
        (asked("* * * *", "", 0, 1), "cron"),
        (asked("0 0 31 4 *", "", 0, 1), "cron"),
        (asked("* * * * *", "Nowhere", 0, 1), "time_zone"),
        (asked("* * * * *", "", -1, 1), "after"),
        (asked("* * * * *", "", 0, -1), "count"),
        (asked("* * * * *", "", 0, 1_001), "count"),
        (pb::PreviewJobScheduleRequest { id: "x".into(), ..Default::default() }, "id"),
    ] {
        refused(preview(&server, request).await, field);
    }
    server.stop().await;
}
