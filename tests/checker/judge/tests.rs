//! The judge finds what it is there to find.

use super::{
    super::{
        history::{History, Sent, Step, What},
        subscribers::Wants,
        truth::{Alert, Truth},
    },
    judge,
};

/// Three events, of which the second raised an alert that was acknowledged later.
fn truth() -> Truth {
    let alert = Alert { camera: "a".into(), severity: "high".into(), version: 2 };
    Truth { events: [1, 2, 3].map(|id| (id, "a".to_string())).into(), alerts: [("x".to_string(), alert)].into() }
}

fn step(what: What, commit: i64, commit_end: bool) -> Step {
    Step::Sent(Sent { what, commit, commit_end })
}

fn alert(version: i64) -> What {
    What::Alert("x".into(), version)
}

/// What a subscriber to everything should be sent.
fn steps() -> Vec<Step> {
    vec![
        step(What::Event(1), 10, true),
        step(What::Event(2), 11, false),
        step(alert(1), 11, true),
        step(What::Event(3), 12, true),
        step(alert(2), 13, true),
    ]
}

fn history(wants: Wants, steps: Vec<Step>) -> History {
    History { steps, ..History::new("s".into(), wants) }
}

fn violations(steps: Vec<Step>) -> Vec<String> {
    let reference = history(Wants::Everything, self::steps());
    judge(&truth(), &[reference, history(Wants::Everything, steps)])
}

fn finds(steps: Vec<Step>, part: &str) {
    let violations = violations(steps);
    assert!(violations.iter().any(|violation| violation.contains(part)), "{part:?} is not in {violations:?}");
}

#[test]
fn what_was_promised_is_no_violation() {
    assert_eq!(violations(steps()), Vec::<String>::new());
    let events =
        steps().into_iter().filter(|step| matches!(step, Step::Sent(Sent { what: What::Event(_), .. }))).map(|step| {
            match step {
                Step::Sent(sent) => self::step(sent.what, sent.commit, true),
                fell_out @ Step::FellOut(_) => fell_out,
            }
        });
    let events = history(Wants::Events, events.collect());
    assert_eq!(judge(&truth(), &[events]), Vec::<String>::new());
}

#[test]
fn a_loss_is_found() {
    let mut lost = steps();
    lost.remove(3);
    finds(lost, "Event(3) never came");
}

#[test]
fn a_repetition_is_found() {
    let mut twice = steps();
    twice.push(step(What::Event(3), 12, true));
    finds(twice, "Event(3) came twice");
}

#[test]
fn another_order_is_found() {
    let mut swapped = steps();
    swapped.swap(0, 3);
    finds(swapped.clone(), "comes in another order");
    finds(swapped, "commit 11 comes after 12");
    let mut versions = steps();
    versions.swap(2, 4);
    finds(versions, "came as 1 after Some(2)");
}

#[test]
fn a_parted_transaction_is_found() {
    let mut unmarked = steps();
    unmarked[2] = step(alert(1), 11, false);
    finds(unmarked, "commit_end of Alert");
    let mut early = steps();
    early[1] = step(What::Event(2), 11, true);
    finds(early, "commit_end of Event(2)");
    let mut other = steps();
    other[2] = step(alert(1), 12, true);
    finds(other, "is of commit 12, for others of 11");
}

#[test]
fn what_is_not_stored_or_not_wanted_is_found() {
    let mut invented = steps();
    invented.insert(4, step(What::Event(4), 12, true));
    finds(invented, "Event(4) came, and is not stored");
    let reference = history(Wants::Everything, steps());
    let unwanted = history(Wants::Events, steps());
    let violations = judge(&truth(), &[reference, unwanted]);
    assert!(violations.iter().any(|violation| violation.contains("is not wanted")));
}

#[test]
fn a_gap_excuses_what_was_pruned_and_no_more() {
    let mut fell_out = steps();
    fell_out.splice(1..4, [Step::FellOut(3)]);
    assert_eq!(violations(fell_out.clone()), Vec::<String>::new());
    // More than can have been committed at the same time.
    let mut truth = truth();
    truth.events.extend((4..100).map(|id| (id, "a".to_string())));
    let mut all = steps();
    all.extend((4..100).map(|id| step(What::Event(id), 100 + id, true)));
    let mut few = all.clone();
    few.splice(1..99, [Step::FellOut(20)]);
    let histories = [all, few].map(|steps| history(Wants::Everything, steps));
    let found = judge(&truth, &histories);
    assert!(found[0].contains("was told that 20 changes are lost, and misses 98"), "{found:?}");
    let mut elsewhere = steps();
    elsewhere.insert(1, Step::FellOut(5));
    elsewhere.remove(4);
    finds(elsewhere, "Event(3) never came");
}

#[test]
fn a_snapshot_must_fit_what_follows() {
    let snapshot = |known: &[(&str, i64)], steps: Vec<Step>| {
        let known = known.iter().map(|(id, version)| ((*id).to_string(), *version));
        let mut history = history(Wants::Snapshot, steps);
        history.snapshot = Some(known.collect());
        judge(&truth(), &[history])
    };
    let none = Vec::<String>::new();
    assert_eq!(snapshot(&[("x", 1)], vec![step(alert(2), 13, true)]), none);
    assert_eq!(snapshot(&[], vec![step(alert(1), 11, true), step(alert(2), 13, true)]), none);
    assert_eq!(snapshot(&[], vec![]), none);
    let repeated = vec![step(alert(1), 11, true), step(alert(2), 13, true)];
    assert_ne!(snapshot(&[("x", 1)], repeated), none);
    assert_ne!(snapshot(&[("x", 1)], vec![]), none);
}
