//! Tests of ticks that were missed.

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

/// Due ticks at second `now` of a schedule with the next tick at second `next`, in seconds.
fn due(cron: &str, missed_policy: MissedPolicy, next: i64, now: i64) -> (Vec<i64>, usize, Option<i64>) {
    let schedule = Model {
        id: Uuid::nil(),
        name: "s".into(),
        description: None,
        enabled: true,
        cron: cron.into(),
        time_zone: "UTC".into(),
        missed_policy,
        job_type: "t".into(),
        queue_name: "default".into(),
        priority: None,
        max_attempts: None,
        payload: None,
        skip_if_active: false,
        next_tick_at: at(next),
        last_tick_at: None,
        last_job_id: None,
        missed_ticks: 0,
        created_at: at(0),
        updated_at: at(0),
        version_id: 1,
    };
    let ticks = Ticks::parse("", cron, "UTC", at(now)).unwrap();
    let due = DueTicks::at(&schedule, &ticks, at(now));
    let second = |time: &DateTime<Utc>| time.timestamp();
    (due.ticks.iter().map(second).collect(), due.skipped, due.next.as_ref().map(second))
}

#[test]
fn what_is_not_missed_is_made_by_every_policy() {
    use MissedPolicy::{RunAll, RunOnce, Skip};
    for policy in [Skip, RunOnce, RunAll] {
        assert_eq!(due("* * * * *", policy, 600, 600), (vec![600], 0, Some(660)));
        assert_eq!(due("* * * * *", policy, 600, 660), (vec![600, 660], 0, Some(720)));
        let late = due("*/20 * * * * *", policy, 600, 659);
        assert_eq!(late, (vec![600, 620, 640], 0, Some(660)));
    }
}

#[test]
fn what_is_missed_is_made_as_the_policy_says() {
    let missed = |policy| due("* * * * *", policy, 600, 901);
    assert_eq!(missed(MissedPolicy::Skip), (vec![900], 5, Some(960)));
    assert_eq!(missed(MissedPolicy::RunOnce), (vec![840, 900], 4, Some(960)));
    let all = vec![600, 660, 720, 780, 840, 900];
    assert_eq!(missed(MissedPolicy::RunAll), (all, 0, Some(960)));
}

#[test]
fn many_missed_ticks_are_dealt_with_in_parts() {
    let (ticks, skipped, next) = due("* * * * * *", MissedPolicy::RunAll, 0, 5_000);
    assert_eq!(ticks, (0..1_000).collect::<Vec<_>>());
    assert_eq!((skipped, next), (0, Some(1_000)));
    let part = due("* * * * * *", MissedPolicy::Skip, 0, 25_000);
    assert_eq!(part, (vec![], 10_000, Some(10_000)));
    let part = due("* * * * * *", MissedPolicy::RunOnce, 0, 25_000);
    assert_eq!(part, (vec![], 10_000, Some(10_000)));
    let (ticks, skipped, next) = due("* * * * * *", MissedPolicy::RunOnce, 20_000, 25_000);
    assert_eq!(ticks, (24_939..=25_000).collect::<Vec<_>>());
    assert_eq!((skipped, next), (4_939, Some(25_001)));
}

#[test]
fn what_is_no_tick_is_left_out() {
    let (ticks, skipped, next) = due("* * * * *", MissedPolicy::RunAll, 601, 700);
    assert_eq!((ticks, skipped, next), (vec![660], 0, Some(720)));
}
