//! List of the GPUs: one panel for each, as tall as the height allows for all of them.

use chrono::{DateTime, FixedOffset, TimeDelta, Utc};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{RenderDirection, Sparkline, SparklineBar},
};

use super::ABSENT;
use crate::{
    pb,
    top::state::{Gpu, State},
};

/// Indentation of the lines below the name.
const INDENT: u16 = 3;

/// Maximum width of each fact, in order.
const WIDEST_FACTS: [u16; 9] = [11, 17, 11, 13, 8, 16, 16, 8, 8];

/// Width of the gap between two facts.
const GAP: u16 = 2;

/// Panel of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Panel {
    /// A single line.
    Line,
    /// Lines for the name, the gauges, at most `facts` lines of facts, and `history` lines of
    /// history.
    Block { facts: u16, history: u16 },
}

impl Panel {
    /// Tallest panel of which `count` fit into the height.
    fn tallest(count: usize, width: u16, room: u16) -> Self {
        let facts = fact_lines(width);
        let block = |facts, history| Self::Block { facts, history };
        let blocks = [block(facts, 2), block(facts, 1), block(facts, 0), block(1, 0), block(0, 0)];
        let fits = |panel: &Self| count.saturating_mul(panel.height().into()) <= room.into();
        blocks.into_iter().find(fits).unwrap_or(Self::Line)
    }

    fn height(self) -> u16 {
        match self {
            Self::Line => 1,
            Self::Block { facts, history } => 2 + facts + history,
        }
    }
}

/// Height of the list, at most `room`.
pub(super) fn height(count: usize, width: u16, room: u16) -> u16 {
    let height = count.saturating_mul(Panel::tallest(count, width, room).height().into());
    // Without GPUs, one line is needed for the message.
    u16::try_from(height).unwrap_or(u16::MAX).clamp(1, room.max(1))
}

/// Draws the GPUs that fit, and the number of the others.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, now: DateTime<FixedOffset>) {
    let gpus = state.gpus();
    if gpus.is_empty() {
        let nothing = if state.complete { "No GPUs." } else { "" };
        frame.render_widget(Line::from(nothing).dim(), area);
        return;
    }
    let panel = Panel::tallest(gpus.len(), area.width, area.height);
    let height = panel.height();
    let mut room = usize::from(area.height / height);
    let is_cut = gpus.len() > room;
    if is_cut {
        room = room.saturating_sub(1);
        let bottom = Rect::new(area.x, area.bottom().saturating_sub(1), area.width, 1);
        let note = format!("+ {} more GPUs", gpus.len() - room);
        frame.render_widget(Line::from(note).dim(), bottom.intersection(area));
    }
    let mut top = area.y;
    for gpu in gpus.into_iter().take(room) {
        let area = Rect::new(area.x, top, area.width, height).intersection(area);
        let age = state.stale(gpu, now.with_timezone(&Utc));
        match panel {
            Panel::Line => draw_line(frame, area, gpu, age),
            Panel::Block { facts, history } => draw_block(frame, area, gpu, age, (facts, history)),
        }
        if age.is_some() {
            frame.buffer_mut().set_style(area, Style::new().dim());
        }
        top += height;
    }
}

fn draw_block(frame: &mut Frame, area: Rect, gpu: &Gpu, stale: Option<TimeDelta>, (facts, history): (u16, u16)) {
    let rows = [Constraint::Length(1), Constraint::Length(1), Constraint::Length(facts), Constraint::Length(history)];
    let [title, gauges, text, chart] = Layout::vertical(rows).areas(area);
    let mut name = vec![index(gpu)];
    name.extend(stale.map(stale_for));
    name.extend(self::name(gpu));
    frame.render_widget(Line::from(name), title);
    if facts == 0 {
        let summary = vec![Span::from("  "), temperature(&gpu.stats), Span::from(format!("  {}", power(&gpu.stats)))];
        let line = Line::from(summary).right_aligned();
        let width = u16::try_from(line.width()).unwrap_or(u16::MAX).min(title.width);
        let right = Rect::new(title.right() - width, title.y, width, title.height);
        frame.render_widget(line, right);
    }
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
    let [left, right] = halves.spacing(GAP).areas(indented(gauges));
    frame.render_widget(utilization(gpu, left.width), left);
    frame.render_widget(memory(gpu, right.width), right);
    let text = indented(text);
    let lines = wrap_facts(facts_of(&gpu.stats), text.width);
    for (row, line) in text.rows().zip(lines) {
        frame.render_widget(line, row);
    }
    let newest_first = gpu.history.iter().rev();
    let bars = newest_first.map(|percent| SparklineBar::from(*percent));
    let chart_of_history = Sparkline::default()
        .data(bars.collect::<Vec<_>>())
        .max(100)
        .direction(RenderDirection::RightToLeft)
        .absent_value_symbol("·")
        .absent_value_style(Style::new().dim())
        .style(Style::new().fg(Color::Cyan));
    frame.render_widget(chart_of_history, indented(chart));
}

fn draw_line(frame: &mut Frame, area: Rect, gpu: &Gpu, stale: Option<TimeDelta>) {
    let stats = &gpu.stats;
    let gauges = if area.width < 100 { [10, 0] } else { [24, 28] };
    let columns = [
        Constraint::Length(2),
        Constraint::Length(gauges[0]),
        Constraint::Length(if gauges[1] == 0 { 13 } else { gauges[1] }),
        Constraint::Length(6),
        Constraint::Fill(1),
    ];
    let [first, left, middle, right, rest] = Layout::horizontal(columns).spacing(1).areas(area);
    frame.render_widget(index(gpu), first);
    frame.render_widget(utilization_short(gpu, left.width), left);
    if gauges[1] == 0 {
        frame.render_widget(Line::from(memory_text(stats)), middle);
    } else {
        frame.render_widget(memory(gpu, middle.width), middle);
    }
    frame.render_widget(temperature(stats), right);
    let mut words: Vec<_> = stale.map(stale_for).into_iter().collect();
    if area.width >= 60 {
        words.push(Span::from(format!("{} ", power(stats))));
    }
    words.extend(name(gpu));
    frame.render_widget(Line::from(words), rest);
}

fn index(gpu: &Gpu) -> Span<'static> {
    let index = gpu.stats.gpu_index;
    let index = index.map_or_else(|| ABSENT.to_string(), |index| index.to_string());
    Span::from(format!("{index:>2} ")).bold()
}

fn name(gpu: &Gpu) -> [Span<'static>; 2] {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| ABSENT.to_string(), super::escaped);
    [Span::from(text(&gpu.stats.gpu_name)).bold(), Span::from(format!("  {}", text(&gpu.stats.host))).dim()]
}

fn stale_for(age: TimeDelta) -> Span<'static> {
    let duration = std::time::Duration::from_secs(age.num_seconds().unsigned_abs());
    let text = humantime::format_duration(duration).to_string();
    // The two largest units are exact enough.
    let rounded = text.split(' ').take(2).collect::<Vec<_>>().join(" ");
    Span::from(format!("stale {rounded} ")).fg(Color::Yellow).bold()
}

fn utilization(gpu: &Gpu, width: u16) -> Line<'static> {
    let percent = gpu.stats.gpu_utilization;
    gauge("GPU", percent, &percent_text(percent), width)
}

fn utilization_short(gpu: &Gpu, width: u16) -> Line<'static> {
    let percent = gpu.stats.gpu_utilization;
    gauge("", percent, &percent_text(percent), width)
}

fn memory(gpu: &Gpu, width: u16) -> Line<'static> {
    gauge("MEM", gpu.memory_percent(), &memory_text(&gpu.stats), width)
}

/// Gauge `GPU [||||||    37%]` of the given width.
fn gauge(label: &'static str, percent: Option<f64>, text: &str, width: u16) -> Line<'static> {
    let label = if label.is_empty() { String::new() } else { format!("{label} ") };
    let around = label.len() + 2 + text.chars().count();
    let inner = usize::from(width).saturating_sub(around);
    let filled = percent.map_or(0, |percent| filled_cells(inner, percent));
    let color = match percent {
        Some(90.0..) => Color::Red,
        Some(70.0..) => Color::Yellow,
        _ => Color::Green,
    };
    let bars = Span::from("|".repeat(filled)).fg(color);
    let rest = " ".repeat(inner - filled);
    Line::from(vec![Span::from(label).dim(), Span::from("["), bars, Span::from(format!("{rest}{text}]"))])
}

/// Number of cells for a percentage, at least one for a value above zero.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the result is clamped to the width"
)]
fn filled_cells(whole: usize, percent: f64) -> usize {
    let cells = (whole as f64 * percent / 100.0).round() as usize;
    let least = usize::from(percent > 0.0);
    cells.max(least).min(whole)
}

fn percent_text(percent: Option<f64>) -> String {
    percent.map_or_else(|| ABSENT.to_string(), |percent| format!("{percent:.0}%"))
}

#[expect(clippy::cast_precision_loss, reason = "2^53 MiB is out of reach")]
fn memory_text(stats: &pb::GpuStats) -> String {
    let gib = |mib: i64| format!("{:.1}", mib as f64 / 1024.0);
    let or_absent = |mib: Option<i64>| mib.map_or_else(|| ABSENT.to_string(), gib);
    match (stats.memory_used, stats.memory_total) {
        (None, None) => ABSENT.to_string(),
        (used, total) => format!("{}/{}Gi", or_absent(used), or_absent(total)),
    }
}

fn temperature(stats: &pb::GpuStats) -> Span<'static> {
    let Some(temperature) = stats.temperature else {
        return Span::from(ABSENT);
    };
    let text = Span::from(format!("{temperature:.0} °C"));
    match stats.temp_slowdown_threshold {
        Some(threshold) if temperature >= threshold => text.fg(Color::Red).bold(),
        Some(threshold) if temperature >= threshold - 10.0 => text.fg(Color::Yellow),
        _ => text,
    }
}

fn power(stats: &pb::GpuStats) -> String {
    let watts = |watts: Option<f64>| watts.map_or_else(|| ABSENT.to_string(), |watts| format!("{watts:.0}"));
    match (stats.power_usage, stats.power_limit) {
        (None, None) => ABSENT.to_string(),
        (usage, limit) => format!("{}/{} W", watts(usage), watts(limit)),
    }
}

fn facts_of(stats: &pb::GpuStats) -> [(&'static str, Span<'static>); 9] {
    let amount = |value: Option<i32>, unit: &str| {
        let text = value.map_or_else(|| ABSENT.to_string(), |value| format!("{value}{unit}"));
        Span::from(text)
    };
    let speed = |value: Option<i64>| Span::from(value.map_or_else(|| ABSENT.to_string(), speed));
    [
        ("TEMP", temperature(stats)),
        ("POWER", Span::from(power(stats))),
        ("SM", amount(stats.sm_clock, " MHz")),
        ("MEM", amount(stats.memory_clock, " MHz")),
        ("FAN", amount(stats.fan_speed, "%")),
        ("PCIe tx", speed(stats.pcie_tx_throughput)),
        ("PCIe rx", speed(stats.pcie_rx_throughput)),
        ("ENC", amount(stats.encoder_utilization, "%")),
        ("DEC", amount(stats.decoder_utilization, "%")),
    ]
}

/// Throughput in kB/s, formatted with the shortest unit.
#[expect(clippy::cast_precision_loss, reason = "2^53 kB/s is out of reach")]
fn speed(kilobytes: i64) -> String {
    match kilobytes {
        ..1_000 => format!("{kilobytes} kB/s"),
        1_000..1_000_000 => format!("{:.0} MB/s", kilobytes as f64 / 1e3),
        _ => format!("{:.1} GB/s", kilobytes as f64 / 1e6),
    }
}

/// Lines of facts, each as long as the width allows.
fn wrap_facts(facts: [(&'static str, Span<'static>); 9], width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![Line::default()];
    for (label, value) in facts {
        let label = Span::from(format!("{label} ")).dim();
        let needed = label.width() + value.width();
        let mut line = lines.pop().unwrap_or_default();
        if line.width() > 0 {
            if line.width() + usize::from(GAP) + needed > usize::from(width) {
                lines.push(std::mem::take(&mut line));
            } else {
                line.push_span(" ".repeat(GAP.into()));
            }
        }
        line.push_span(label);
        line.push_span(value);
        lines.push(line);
    }
    lines
}

/// Number of lines for facts of maximum width, so that the height of panels is stable.
fn fact_lines(width: u16) -> u16 {
    let width = width.saturating_sub(INDENT);
    let (mut lines, mut used) = (1, 0);
    for fact in WIDEST_FACTS {
        if used > 0 && used + GAP + fact > width {
            (lines, used) = (lines + 1, fact);
        } else {
            used += if used > 0 { GAP + fact } else { fact };
        }
    }
    lines
}

fn indented(area: Rect) -> Rect {
    let indent = INDENT.min(area.width);
    Rect::new(area.x + indent, area.y, area.width - indent, area.height)
}
