use super::*;
use crate::top::examples::{alert, gpu, heartbeat, now, silent_gpu, snapshot_end, state, update, with_status};

fn ids(state: &State) -> Vec<&str> {
    state.alerts().map(|alert| alert.id.as_str()).collect()
}

fn indexes(state: &State) -> Vec<i32> {
    let gpus = state.gpus();
    gpus.iter().filter_map(|gpu| gpu.stats.gpu_index).collect()
}

fn press(state: &mut State, code: KeyCode) -> bool {
    state.press(code.into()).is_break()
}

#[test]
fn alerts_are_newest_first_and_a_change_takes_the_place_of_what_it_changes() {
    let mut state = state(vec![], vec![alert("a", 30), alert("b", 20)]);
    state.apply_event(update(alert("c", 10)), now());
    assert_eq!((ids(&state), state.open_alerts()), (vec!["c", "b", "a"], 3));
    let acknowledged = with_status(alert("b", 20), AlertStatus::Acknowledged);
    state.apply_event(update(acknowledged), now());
    assert_eq!((ids(&state), state.open_alerts()), (vec!["c", "b", "a"], 2));
    let statuses: Vec<_> = state.alerts().map(pb::Alert::status).collect();
    assert_eq!(statuses[1], AlertStatus::Acknowledged);
}

#[test]
fn only_the_newest_alerts_are_kept() {
    let many = i64::try_from(MAX_ALERTS).unwrap() + 5;
    let alerts = (0..many).map(|ago| alert(&ago.to_string(), many - ago));
    let state = state(vec![], alerts.collect());
    assert_eq!(state.alerts().len(), MAX_ALERTS);
    assert_eq!(ids(&state)[0], (many - 1).to_string());
}

#[test]
fn a_new_snapshot_takes_away_what_was_closed_meanwhile() {
    let dismissed = with_status(alert("dismissed", 40), AlertStatus::Dismissed);
    let mut state = state(vec![gpu(0, 0)], vec![alert("a", 30), alert("b", 20)]);
    state.apply_event(update(dismissed), now());
    state.apply_event(ConnectionEvent::Broken("gone".into()), now());
    state.apply_event(ConnectionEvent::Connected, now());
    state.apply_event(ConnectionEvent::Snapshot, now());
    state.apply_event(update(alert("b", 20)), now());
    assert_eq!(ids(&state), ["b", "a", "dismissed"], "until the snapshot ends");
    state.apply_event(snapshot_end(), now());
    assert_eq!(ids(&state), ["b", "dismissed"]);
    // An incomplete snapshot proves nothing about missing alerts.
    state.apply_event(ConnectionEvent::Snapshot, now());
    state.apply_event(ConnectionEvent::Snapshot, now());
    state.apply_event(update(alert("b", 20)), now());
    state.apply_event(update(alert("c", 10)), now());
    state.apply_event(snapshot_end(), now());
    assert_eq!(ids(&state), ["c", "b", "dismissed"]);
    assert_eq!(indexes(&state), [0], "GPUs stay, and get stale");
}

#[test]
fn what_the_link_was_since_is_not_moved_by_further_attempts() {
    let later = |seconds| now() + TimeDelta::seconds(seconds);
    let mut state = state(vec![], vec![]);
    assert!(state.heartbeat.is_some());
    state.apply_event(ConnectionEvent::Broken("one".into()), later(1));
    state.apply_event(ConnectionEvent::Broken("two".into()), later(2));
    let seen = (state.link, state.since, state.problem.as_deref());
    assert_eq!(seen, (ConnectionState::Reconnecting, later(1), Some("two")));
    assert_eq!(state.heartbeat, None);
    state.apply_event(ConnectionEvent::Connected, later(3));
    let seen = (state.link, state.since, state.problem.as_deref());
    assert_eq!(seen, (ConnectionState::Connected, later(3), None));
    let mut never = State::new(String::new(), now());
    never.apply_event(ConnectionEvent::Broken("no".into()), later(1));
    assert_eq!((never.link, never.since), (ConnectionState::Connecting, now()));
}

#[test]
fn a_gpu_keeps_its_history_with_holes_where_nothing_was_measured() {
    let mut state = state(vec![gpu(0, 30)], vec![]);
    let mut unmeasured = gpu(0, 29);
    unmeasured.gpu_utilization = None;
    for stats in [unmeasured.clone(), unmeasured, gpu(0, 28), gpu(0, 10)] {
        state.apply_event(update(stats), now());
    }
    let history = state.gpus()[0].history.iter().copied().collect::<Vec<_>>();
    let measured = Some(37);
    assert_eq!(
        history,
        [measured, None, measured, None, measured],
        "not measured at 29, which was told twice; nothing from 28 to 10"
    );
}

#[test]
fn a_gpu_is_stale_by_the_clock_of_the_server_and_by_how_often_it_is_sampled() {
    let age = |state: &State| state.stale(state.gpus()[0], now()).map(|age| age.num_seconds());
    assert_eq!(age(&state(vec![gpu(0, 5)], vec![])), None);
    let mut state = state(vec![gpu(0, 6)], vec![]);
    assert_eq!(age(&state), Some(6));
    state.apply_event(heartbeat(-4, 0), now());
    assert_eq!(age(&state), None);
    state.apply_event(heartbeat(60, 0), now());
    assert_eq!(age(&state), Some(66));
    let mut seldom = self::state(vec![gpu(0, 70)], vec![]);
    seldom.apply_event(update(gpu(0, 40)), now());
    assert_eq!(age(&seldom), None, "sampled every 30 s");
}

#[test]
fn gpus_are_sorted_and_those_that_do_not_tell_come_last() {
    let mut busy = gpu(2, 0);
    (busy.gpu_utilization, busy.temperature) = (Some(90.0), Some(40.0));
    let mut full = gpu(1, 0);
    full.memory_used = Some(16_000);
    let mut state = state(vec![busy, silent_gpu(0), gpu(10, 0), full], vec![]);
    let mut orders = vec![];
    for _ in 0..5 {
        orders.push((state.sort.name(), indexes(&state)));
        press(&mut state, KeyCode::Char('s'));
    }
    let expected = [
        ("index", vec![0, 1, 2, 10]),
        ("utilization", vec![2, 1, 10, 0]),
        ("memory", vec![1, 2, 10, 0]),
        ("temperature", vec![1, 10, 2, 0]),
        ("index", vec![0, 1, 2, 10]),
    ];
    assert_eq!(orders, expected);
}

#[test]
fn scrolling_stays_within_the_alerts_and_on_what_is_looked_at() {
    let alerts = (0..20).map(|ago| alert(&ago.to_string(), 100 - ago));
    let mut state = state(vec![], alerts.collect());
    state.set_page(8);
    press(&mut state, KeyCode::Up);
    assert_eq!(state.scroll, 0);
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::PageDown);
    assert_eq!(state.scroll, 9);
    state.apply_event(update(alert("new", 0)), now());
    assert_eq!(state.scroll, 10, "one more is above");
    press(&mut state, KeyCode::PageDown);
    assert_eq!(state.scroll, 13, "the last page");
    state.set_page(30);
    assert_eq!(state.scroll, 0);
    state.apply_event(update(alert("newer", -1)), now());
    assert_eq!(state.scroll, 0, "the newest is followed");
}

#[test]
fn keys_quit_and_help_is_closed_by_any_other() {
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    let mut state = state(vec![], vec![]);
    assert!(press(&mut state, KeyCode::Char('q')) && press(&mut state, KeyCode::Esc));
    assert!(state.press(control_c).is_break());
    assert!(!press(&mut state, KeyCode::Char('c')) && !press(&mut state, KeyCode::Char('?')));
    assert!(state.help);
    assert!(!press(&mut state, KeyCode::Esc) && !state.help);
    press(&mut state, KeyCode::Char('?'));
    assert!(state.press(control_c).is_break() && press(&mut state, KeyCode::Char('q')));
}
