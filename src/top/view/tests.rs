use ratatui::{Terminal, backend::TestBackend, buffer::Cell, crossterm::event::KeyCode};

use super::*;
use crate::top::{
    examples::{alert, gpu, heartbeat, now, silent_gpu, state, update, with_status},
    state::ConnectionEvent,
};

/// Lines of a terminal of the given size.
fn shown(state: &mut State, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let drawn = terminal.draw(|frame| {
        state.set_page(alert_rows(frame.area(), state));
        draw(frame, state, now().fixed_offset());
    });
    let buffer = drawn.unwrap().buffer;
    let symbols: Vec<_> = buffer.content().iter().map(Cell::symbol).collect();
    let lines = symbols.chunks(usize::from(width).max(1));
    lines.map(|line| line.concat().trim_end().to_string()).collect()
}

fn screen(state: &mut State, size: (u16, u16)) -> String {
    shown(state, size).join("\n")
}

#[test]
fn a_gpu_is_shown_with_all_that_is_known() {
    let mut state = state(vec![gpu(0, 0)], vec![]);
    let lines = shown(&mut state, (130, 30));
    assert_eq!(lines[0], "http://box:50051  connected since 12:00:00  behind 0");
    assert_eq!(lines[1], " 0 NVIDIA RTX 4080  camera-box");
    let gauges = &lines[2];
    assert!(gauges.contains("37%]") && gauges.contains("1.5/16.0Gi]"), "{gauges}");
    assert_eq!(
        lines[3].trim(),
        "TEMP 51 °C  POWER 88/320 W  SM 2535 MHz  MEM 11501 MHz  FAN 34%  PCIe tx 300 MB/s  \
         PCIe rx 1.2 GB/s  ENC 21%  DEC 64%"
    );
    assert!(!lines.concat().contains(ABSENT) && !lines.concat().contains("stale"));
}

#[test]
fn a_gauge_is_as_full_as_what_it_shows() {
    let full = |percent| {
        let mut stats = gpu(0, 0);
        stats.gpu_utilization = Some(percent);
        let lines = shown(&mut state(vec![stats], vec![]), (80, 24));
        let gauge = lines[2].split(']').next().unwrap().to_string();
        gauge.matches('|').count()
    };
    assert_eq!((full(0.0), full(0.1)), (0, 1));
    assert!(full(100.0) > full(50.0) && full(50.0) > full(10.0));
}

#[test]
fn what_is_absent_is_never_shown_as_0() {
    for size in [(130, 30), (80, 24), (40, 10)] {
        let gpus = vec![silent_gpu(7), silent_gpu(8)];
        let screen = screen(&mut state(gpus, vec![]), size);
        let gpus: String = screen.lines().skip(1).take_while(|line| !line.starts_with("Alerts")).collect();
        assert!(gpus.contains("NVIDIA Silent") && gpus.contains(ABSENT), "{screen}");
        assert!(!gpus.contains('0') && !gpus.contains('|'), "{screen}");
    }
    let mut partly = gpu(7, 0);
    (partly.power_limit, partly.memory_used) = (None, None);
    let screen = screen(&mut state(vec![partly], vec![]), (130, 30));
    assert!(screen.contains("POWER 88/– W") && screen.contains("–/16.0Gi"), "{screen}");
}

#[test]
fn the_history_shows_holes_where_nothing_was_measured() {
    let mut state = state(vec![gpu(0, 3)], vec![]);
    let mut unmeasured = gpu(0, 2);
    unmeasured.gpu_utilization = None;
    let mut busy = gpu(0, 1);
    busy.gpu_utilization = Some(100.0);
    state.apply_event(update(unmeasured), now());
    state.apply_event(update(busy), now());
    let lines = shown(&mut state, (130, 30));
    let bottom = lines[5].as_str();
    assert!(bottom.ends_with("·█"), "{bottom}");
}

#[test]
fn an_old_sample_is_shown_as_stale() {
    for size in [(130, 30), (80, 24), (40, 10)] {
        let screen = screen(&mut state(vec![gpu(0, 72), gpu(1, 0)], vec![]), size);
        assert_eq!(screen.matches("stale 1m 12s").count(), 1, "{screen}");
    }
}

#[test]
fn alerts_are_shown_newest_first_with_their_status() {
    let mut old = alert("a", 86_400);
    old.severity = Severity::Critical.into();
    let metadata = prost_types::Struct { fields: [("rule_name".to_string(), "A person".to_string().into())].into() };
    let mut new = with_status(alert("b", 5), AlertStatus::Acknowledged);
    new.metadata = Some(metadata);
    new.camera_id = None;
    let mut state = state(vec![], vec![old, new]);
    let lines = shown(&mut state, (110, 20));
    let title = lines.iter().position(|line| line == "Alerts  2, 1 open").unwrap();
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(&lines[title + 1]), ["11:59:55", "high", "acknowledged", "–", "A", "person", "key_b"]);
    assert_eq!(words(&lines[title + 2]), ["03-03", "12:00", "critical", "pending", "front_door", "key_a"]);
    let narrow = screen(&mut state, (40, 10));
    assert!(narrow.contains("high ack"), "{narrow}");
}

#[test]
fn what_matters_most_is_shown_where_there_is_little_room() {
    for size in [(120, 30), (80, 24), (60, 16), (60, 12)] {
        let gpus = (0..4).map(|index| gpu(index, 0)).collect();
        let screen = screen(&mut state(gpus, vec![]), size);
        for what in ["RTX 4080", "37%]", "1.5/16.0Gi", "51 °C", "88/320 W"] {
            assert_eq!(screen.matches(what).count(), 4, "{what}: {screen}");
        }
    }
}

#[test]
fn many_alerts_are_scrolled() {
    let alerts = (0..200).map(|ago| alert(&format!("<{ago}>"), ago)).rev();
    let mut state = state(vec![gpu(0, 0)], alerts.collect());
    let first = screen(&mut state, (100, 24));
    assert!(first.contains("200, 200 open  1–") && first.contains("<0>"), "{first}");
    let _ = state.press(KeyCode::End.into());
    let last = screen(&mut state, (100, 24));
    assert!(last.contains("–200") && last.contains("<199>"), "{last}");
    assert!(!last.contains("<0>"), "{last}");
}

#[test]
fn many_gpus_share_the_room_and_those_without_are_counted() {
    let gpus: Vec<_> = (0..16).map(|index| gpu(index, 0)).collect();
    let mut state = state(gpus, vec![alert("a", 0)]);
    let tall = screen(&mut state, (120, 120));
    assert_eq!(tall.matches("DEC 64%").count(), 16, "{tall}");
    let normal = screen(&mut state, (120, 40));
    assert_eq!(normal.matches("NVIDIA RTX 4080").count(), 16, "{normal}");
    assert_eq!(normal.matches("51 °C").count(), 16, "{normal}");
    let small = screen(&mut state, (80, 24));
    let seen = small.matches("NVIDIA RTX 4080").count();
    assert!(small.contains(&format!("+ {} more GPUs", 16 - seen)), "{small}");
    assert!(small.contains("key_a"), "{small}");
}

#[test]
fn the_header_says_how_it_stands_with_the_server() {
    let mut state = State::new("http://box:50051".into(), now());
    assert!(screen(&mut state, (100, 24)).contains("connecting since 12:00:00"));
    state.apply_event(ConnectionEvent::Connected, now());
    state.apply_event(heartbeat(0, 12), now());
    let behind = screen(&mut state, (100, 24));
    assert!(behind.contains("connected") && behind.contains("behind 12 (120 ms)"), "{behind}");
    assert!(behind.contains("Waiting for the server."), "{behind}");
    state.apply_event(ConnectionEvent::Broken("Connection refused".into()), now());
    let broken = screen(&mut state, (100, 24));
    assert!(broken.contains("reconnecting since 12:00:00  Connection refused"), "{broken}");
    assert!(!broken.contains("behind"), "{broken}");
    assert!(screen(&mut state, (40, 10)).starts_with("reconnecting since"));
}

#[test]
fn no_size_and_no_text_is_too_much() {
    let mut odd = alert("\u{1b}[31m\u{7}\n日本語🚨", 0);
    odd.camera_id = Some("\u{1b}]0;title\u{7}\t".repeat(50));
    let mut far = gpu(1, 0);
    far.gpu_name = Some("🚨\u{1b}[2J".repeat(100));
    far.recorded_at = Some(prost_types::Timestamp { seconds: i64::MIN, nanos: -1 });
    far.gpu_utilization = Some(f64::NAN);
    far.temperature = Some(f64::INFINITY);
    (far.memory_used, far.memory_total) = (Some(i64::MAX), Some(i64::MIN));
    far.pcie_tx_throughput = Some(i64::MIN);
    let gpus = (2..40).map(|index| gpu(index, 100_000)).chain([far, silent_gpu(0)]);
    let mut full = state(gpus.collect(), vec![odd, alert("b", 1)]);
    let mut empty = state(vec![], vec![]);
    for state in [&mut full, &mut empty] {
        for help in [false, true] {
            state.help = help;
            for width in [0, 1, 2, 3, 7, 20, 40, 60, 130] {
                for height in (0..7).chain([10, 24, 60]) {
                    let screen = screen(state, (width, height));
                    assert!(!screen.contains('\u{1b}') && !screen.contains('\u{7}'));
                }
            }
        }
    }
}
