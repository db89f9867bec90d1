use std::ops::RangeInclusive;

use chrono::{Datelike, Timelike};

use super::*;

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn parse(cron: &str, zone: &str) -> Result<Ticks> {
    Ticks::parse("", cron, zone, time("2026-01-01T00:00:00Z"))
}

/// Ticks in a range, as local times.
fn ticks(cron: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
    let ticks = parse(cron, zone).unwrap();
    let following = std::iter::successors(ticks.after(time(after)), |tick| ticks.after(*tick));
    let until = time(until);
    let following = following.take_while(|tick| *tick <= until);
    following.map(|tick| ticks.local_time(tick)).collect()
}

#[test]
fn clocks_that_are_put_forward_show_a_time_at_the_next_moment() {
    // 02:00 becomes 03:00.
    let day = |cron| ticks(cron, "Europe/Berlin", "2026-03-28T23:00:00Z", "2026-03-29T21:59:59Z");
    assert_eq!(day("30 2 * * *"), ["2026-03-29T03:00:00+02:00"]);
    assert_eq!(day("0 2 * * *"), ["2026-03-29T03:00:00+02:00"]);
    assert_eq!(day("59 1 * * *"), ["2026-03-29T01:59:00+01:00"]);
    assert_eq!(day("0 3 * * *"), ["2026-03-29T03:00:00+02:00"]);
    // Local times falling on the same moment are one tick.
    assert_eq!(day("*/15 2 * * *"), ["2026-03-29T03:00:00+02:00"]);
    assert_eq!(
        day("30 1-3 * * *"),
        ["2026-03-29T01:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]
    );
    // Expressions following the elapsed time skip no tick.
    assert_eq!(day("30 * * * *").len(), 23);
    assert_eq!(day("*/20 * * * *").len(), 68);
}

#[test]
fn clocks_that_are_put_back_show_a_time_once() {
    // 03:00 becomes 02:00.
    let day = |cron| ticks(cron, "Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z");
    assert_eq!(day("30 2 * * *"), ["2026-10-25T02:30:00+02:00"]);
    assert_eq!(
        day("30 1-3 * * *"),
        ["2026-10-25T01:30:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-25T03:30:00+01:00"]
    );
    assert_eq!(day("30 * * * *").len(), 25);
    assert_eq!(day("*/20 * * * *").len(), 74);
}

/// Cron expression for the oracle: seconds, minutes, hours and days of the month.
struct Expression(&'static str, [&'static [RangeInclusive<u32>]; 4]);

const ANY: &[RangeInclusive<u32>] = &[0..=59];

/// Expressions around the hours of clock changes.
const EXPRESSIONS: &[Expression] = &[
    Expression("0 * * * * *", [&[0..=0], ANY, ANY, ANY]),
    Expression("0 0 * * * *", [&[0..=0], &[0..=0], ANY, ANY]),
    Expression("15 45 * * * *", [&[15..=15], &[45..=45], ANY, ANY]),
    Expression("0 30 2 * * *", [&[0..=0], &[30..=30], &[2..=2], ANY]),
    Expression("0 0 2 * * *", [&[0..=0], &[0..=0], &[2..=2], ANY]),
    Expression("0 0 3 * * *", [&[0..=0], &[0..=0], &[3..=3], ANY]),
    Expression("0 15,45 1-3 * * *", [&[0..=0], &[15..=15, 45..=45], &[1..=3], ANY]),
    Expression("30 59 0-22 * * *", [&[30..=30], &[59..=59], &[0..=22], ANY]),
    Expression("0 0 0 * * *", [&[0..=0], &[0..=0], &[0..=0], ANY]),
    Expression("0 30 0,23 * * *", [&[0..=0], &[30..=30], &[0..=0, 23..=23], ANY]),
    Expression("0 5 2 29 * *", [&[0..=0], &[5..=5], &[2..=2], &[29..=29]]),
    Expression("0 5 * 8,25 * *", [&[0..=0], &[5..=5], ANY, &[8..=8, 25..=25]]),
    Expression("* * 2 * * *", [ANY, ANY, &[2..=2], ANY]),
];

impl Expression {
    fn names(&self, clock: NaiveDateTime) -> bool {
        let shown = [clock.second(), clock.minute(), clock.hour(), clock.day()];
        let names = |(field, shown): (&&[RangeInclusive<u32>], u32)| field.iter().any(|range| range.contains(&shown));
        self.1.iter().zip(shown).all(names)
    }

    fn by_the_clock(&self) -> bool {
        self.1[2] != ANY
    }

    /// Ticks among seconds, given the local time of each. The first second only starts the range.
    fn walk(&self, seconds: &[(DateTime<Utc>, NaiveDateTime)]) -> Vec<DateTime<Utc>> {
        let (mut ticks, mut last) = (Vec::new(), seconds[0].1);
        for (time, shown) in &seconds[1..] {
            let is_tick = if self.by_the_clock() {
                // Skipped local times, without times shown before.
                let new = (1..=(*shown - last).num_seconds()).map(|n| last + TimeDelta::seconds(n));
                new.into_iter().any(|clock| self.names(clock))
            } else {
                self.names(*shown)
            };
            if is_tick {
                ticks.push(*time);
            }
            last = last.max(*shown);
        }
        ticks
    }
}

/// Local times of a zone, from four hours before to four hours after the clock change near a day, or near its noon.
fn around(zone: Tz, day: &str) -> Vec<(DateTime<Utc>, NaiveDateTime)> {
    let clock = |time: DateTime<Utc>| time.with_timezone(&zone).naive_local();
    let noon = time(&format!("{day}T12:00:00Z"));
    let minutes = (-36 * 60..36 * 60).map(|minutes| noon + TimeDelta::minutes(minutes));
    let minute = TimeDelta::minutes(1);
    let is_changed = |time: &DateTime<Utc>| clock(*time + minute) - clock(*time) != minute;
    let change = minutes.into_iter().find(is_changed).unwrap_or(noon);
    let seconds = (-4 * 3_600..=4 * 3_600).map(|seconds| change + TimeDelta::seconds(seconds));
    seconds.map(|time| (time, clock(time))).collect()
}

#[test]
fn ticks_are_those_that_looking_at_the_clock_every_second_finds() {
    for (zone, days) in [
        ("Europe/Berlin", ["2026-03-29", "2026-10-25"]),
        ("America/New_York", ["2026-03-08", "2026-11-01"]),
        // Clock change by half an hour.
        ("Australia/Lord_Howe", ["2026-04-05", "2026-10-04"]),
        // Clock change at midnight.
        ("Africa/Cairo", ["2026-04-24", "2026-10-30"]),
        ("America/Santiago", ["2026-04-05", "2026-09-06"]),
        ("Asia/Kolkata", ["2026-03-29", "2026-10-25"]),
        ("UTC", ["2026-03-29", "2026-10-25"]),
    ] {
        for day in days {
            let seconds = around(zone.parse().unwrap(), day);
            let (first, last) = (seconds[0].0, seconds[seconds.len() - 1].0);
            for expression in EXPRESSIONS {
                let ticks = parse(expression.0, zone).unwrap();
                let following = std::iter::successors(ticks.after(first), |tick| ticks.after(*tick));
                let found: Vec<_> = following.take_while(|tick| *tick <= last).collect();
                let expected = expression.walk(&seconds);
                assert_eq!(found, expected, "{} in {zone} around {day}", expression.0);
            }
        }
    }
}

#[test]
fn a_search_finds_the_same_wherever_it_begins() {
    for (zone, day) in [
        ("Europe/Berlin", "2026-03-29"),
        ("Europe/Berlin", "2026-10-25"),
        ("Australia/Lord_Howe", "2026-04-05"),
        ("Australia/Lord_Howe", "2026-10-04"),
    ] {
        let noon = time(&format!("{day}T00:00:00Z"));
        for expression in EXPRESSIONS {
            let ticks = parse(expression.0, zone).unwrap();
            let mut expected = None;
            for minutes in (-720..=720).rev() {
                let begin = noon + TimeDelta::minutes(minutes) + TimeDelta::milliseconds(500);
                let found = ticks.after(begin).unwrap();
                assert!(found > begin);
                if let Some(expected) = expected.filter(|_| found > begin + TimeDelta::minutes(1)) {
                    assert_eq!(found, expected, "{} after {begin} in {zone}", expression.0);
                }
                expected = Some(found);
            }
        }
    }
}

#[test]
fn a_day_that_a_zone_left_out_is_made_up_for_when_it_is_over() {
    let samoa = Ticks::parse("", "30 2 30 12 *", "Pacific/Apia", time("2011-12-01T00:00:00Z"));
    let samoa = samoa.unwrap();
    let tick = samoa.after(time("2011-12-01T00:00:00Z")).unwrap();
    assert_eq!(samoa.local_time(tick), "2011-12-31T00:00:00+14:00");
}

#[test]
fn expressions_mean_what_the_manual_says() {
    for (cron, expected) in [
        ("*/15 * * * *", ["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]),
        ("0-30/10 9 * * *", ["2026-01-01T09:00:00Z", "2026-01-01T09:10:00Z"]),
        ("*/30 * * * * *", ["2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"]),
        ("0 9 * * MON-FRI", ["2026-01-01T09:00:00Z", "2026-01-02T09:00:00Z"]),
        ("0 0 * * 7", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("0 0 * * sun", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("0 0 ? FEB ?", ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"]),
        ("0 0 13 * FRI", ["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"]),
        ("0 9 1-7 * +MON", ["2026-01-05T09:00:00Z", "2026-02-02T09:00:00Z"]),
        ("0 0 L * *", ["2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"]),
        ("0 0 15W * *", ["2026-01-15T00:00:00Z", "2026-02-16T00:00:00Z"]),
        ("0 0 * * FRI#2", ["2026-01-09T00:00:00Z", "2026-02-13T00:00:00Z"]),
        ("0 0 * * FRI#L", ["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"]),
        ("0 0 29 2 *", ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
        ("@hourly", ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]),
        ("@daily", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]),
        ("@weekly", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("@monthly", ["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]),
        ("@yearly", ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"]),
    ] {
        let ticks = parse(cron, "UTC").unwrap();
        let first = ticks.after(time("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!([first, ticks.after(first).unwrap()], expected.map(time), "{cron}");
    }
}

#[test]
fn what_is_no_expression_or_zone_is_refused_by_its_field() {
    for cron in [
        "",
        "*",
        "* * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "5-1 * * * *",
        "a * * * *",
        "* * * * * * *",
        "0 0 0 1 1 * 2030",
        "@reboot",
        "@every 5m",
        "- * * * *",
        ", * * * *",
        "1,,2 * * * *",
        "0 0 * * MON,",
        "ä * * * *",
    ] {
        let error = parse(cron, "UTC").err().unwrap_or_else(|| panic!("`{cron}` is read"));
        assert!(error.to_string().starts_with("`cron` "), "{cron}: {error}");
    }
    for zone in ["", "Berlin", "europe/berlin", "+02:00", "Europe/Berlin "] {
        let error = parse("* * * * *", zone).unwrap_err();
        assert!(error.to_string().starts_with("`time_zone` "), "{zone}: {error}");
    }
}

#[test]
fn what_would_never_tick_is_refused() {
    for cron in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 30 2 +MON"] {
        let error = parse(cron, "Europe/Berlin").unwrap_err();
        assert_eq!(error.to_string(), "`cron` would never tick", "{cron}");
    }
}

#[test]
fn no_text_makes_the_reader_panic() {
    let parts = ["*", "0", "59", "-", ",", "/", "L", "W", "#", "+", "?", "MON", "JAN", " ", "@", "ß", "\u{130}", "7"];
    let mut random = fastrand::Rng::with_seed(7);
    let mut read = 0;
    for _ in 0..20_000 {
        let text: String = (0..random.usize(1..24)).map(|_| parts[random.usize(..parts.len())]).collect();
        read += u32::from(parse(&text, "UTC").is_ok());
        let fields: Vec<_> = (0..5)
            .map(|_| (0..random.usize(1..4)).map(|_| parts[random.usize(..parts.len())]).collect::<String>())
            .collect();
        read += u32::from(parse(&fields.join(" "), "Europe/Berlin").is_ok());
    }
    assert!(read > 0);
}
