//! When schedules are in force, over every change of the clock.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use tonic::Code;
use watchpost::{
    pb::{self, preview_schedule_request::Of},
    time_zones::Tz,
};

use crate::{
    oracle,
    support::{
        TestServer, always,
        calls::at,
        database::{Backend, on_both},
        field,
    },
};

/// `WatchSlots` whose clocks are peculiar: a half hour, the fasting month, a day left out, a change at midnight, an
/// offset with seconds.
const ZONES: [&str; 6] = [
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Africa/Monrovia",
];

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The hours from 1970 to 2037 in which the clock is changed.
fn changes(zone: Tz) -> impl Iterator<Item = DateTime<Utc>> {
    let offset = move |at: &DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc());
    let first = time("1970-01-03T00:00:00Z");
    let hours = (0..68 * 8_766).map(move |hour| first + TimeDelta::hours(hour));
    hours.filter(move |at| offset(at) != offset(&(*at + TimeDelta::hours(1))))
}

#[test]
fn the_wall_clock_decides_at_every_change_of_the_clock() {
    for zone in ZONES {
        let zone: Tz = zone.parse().unwrap();
        let mut count = 0;
        for change in changes(zone) {
            let (from, until) = (change - TimeDelta::hours(27), change + TimeDelta::hours(27));
            for said in oracle::schedules(zone) {
                assert_eq!(said.check(from, until), Ok(54 * 60));
            }
            count += 1;
        }
        assert!(count > 0, "{zone}");
    }
}

#[test]
fn the_wall_clock_decides_all_year() {
    let year = (time("2026-01-01T00:00:00Z"), time("2027-01-01T00:00:00Z"));
    for said in oracle::schedules("Europe/Berlin".parse().unwrap()) {
        assert_eq!(said.check(year.0, year.1), Ok(365 * 1_440));
    }
}

/// The windows: their local starts and ends.
fn local(response: &pb::PreviewScheduleResponse) -> Vec<(&str, &str)> {
    let windows = response.windows.iter();
    let windows = windows.map(|window| (&*window.local_start, &*window.local_end));
    windows.collect()
}

#[on_both]
async fn the_next_windows_are_told(backend: Backend) {
    let server = TestServer::start(backend).await;
    let preview = async |of: Of, from: &str, count| {
        let start_time = at(time(from).timestamp());
        let request = pb::PreviewScheduleRequest { of: Some(of), start_time, count };
        server.rules().preview_schedule(request).await.map(tonic::Response::into_inner)
    };
    let night = pb::Schedule {
        days: vec![pb::DayOfWeek::Saturday.into(), pb::DayOfWeek::Sunday.into()],
        start_time: "22:00".into(),
        end_time: "02:30".into(),
        time_zone: "Europe/Berlin".into(),
    };
    // On the night to Sunday the clock is set back from three to two.
    let told = preview(Of::Schedule(night.clone()), "2026-10-24T12:00:00Z", 3).await.unwrap();
    assert!(!told.in_force);
    assert_eq!(
        local(&told),
        [
            ("2026-10-24T22:00:00+02:00", "2026-10-25T02:30:00+02:00"),
            ("2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00"),
            ("2026-10-25T22:00:00+01:00", "2026-10-26T02:30:00+01:00"),
        ]
    );
    assert_eq!(told.windows[1].start, at(time("2026-10-25T01:00:00Z").timestamp()));
    // In spring it is set forward over the end.
    let told = preview(Of::Schedule(night.clone()), "2027-03-27T23:00:00Z", 1).await.unwrap();
    assert!(told.in_force);
    assert_eq!(local(&told), [("2027-03-28T00:00:00+01:00", "2027-03-28T03:00:00+02:00")]);

    let rule = server.rule(pb::AlertRule { schedule: Some(night), ..always("night") }).await;
    let told = preview(Of::RuleId(rule.id), "2026-10-24T12:00:00Z", 0).await.unwrap();
    assert_eq!(told.windows.len(), 10);
    let rule = server.rule(always("any time")).await;
    let told = preview(Of::RuleId(rule.id), "2026-10-24T12:00:00Z", 5).await.unwrap();
    assert_eq!((told.in_force, local(&told)), (true, vec![("2026-10-24T12:00:00+00:00", "")]));
    // Whole days that follow each other are one window.
    let days = pb::Schedule { days: vec![5, 6, 7], ..Default::default() };
    let told = preview(Of::Schedule(days), "2026-11-25T00:00:00Z", 1).await.unwrap();
    assert_eq!(local(&told), [("2026-11-27T00:00:00+00:00", "2026-11-30T00:00:00+00:00")]);

    let wrong = pb::Schedule { time_zone: "Mars/Olympus".into(), ..Default::default() };
    for (of, count, name) in [
        (Some(Of::Schedule(wrong)), 1, "schedule.time_zone"),
        (Some(Of::Schedule(pb::Schedule::default())), 101, "count"),
        (Some(Of::Schedule(pb::Schedule::default())), -1, "count"),
        (Some(Of::RuleId("x".into())), 1, "rule_id"),
        (None, 1, "rule_id"),
    ] {
        let request = pb::PreviewScheduleRequest { of, start_time: None, count };
        let status = server.rules().preview_schedule(request).await.unwrap_err();
        assert_eq!((status.code(), &*field(&status)), (Code::InvalidArgument, name));
    }
    let nobody = Of::RuleId("01890a5d-ac96-774b-bcce-b302099a8057".into());
    let status = preview(nobody, "2026-10-24T12:00:00Z", 1).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    server.stop().await;
}
