//! Layout and drawing of the state, on a terminal of any size.

use std::fmt::Write;

use chrono::{DateTime, FixedOffset};
use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table},
};

use super::state::{ConnectionState, MAX_ALERTS, State, time};
use crate::{
    escape::{escape, is_unsafe},
    pb::{self, AlertStatus, Severity},
};

mod gpus;

/// Text for an absent value.
const ABSENT: &str = "–";

const HELP: [(&str, &str); 7] = [
    ("q Esc Ctrl-C", "quit"),
    ("↑ ↓", "scroll the alerts"),
    ("PgUp PgDn", "scroll a page"),
    ("Home End", "newest, oldest"),
    ("s", "sort the GPUs"),
    ("?", "this help"),
    (ABSENT, "not measured"),
];

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame, state: &State, now: DateTime<FixedOffset>) {
    let areas = Areas::new(frame.area(), state);
    frame.render_widget(header(state, now, areas.header.width), areas.header);
    gpus::draw(frame, areas.gpus, state, now);
    draw_alerts(frame, areas.alerts, state, now);
    frame.render_widget(footer(state), areas.footer);
    if state.help {
        draw_help(frame);
    }
    strip_unsafe(frame.buffer_mut());
}

/// Removes control characters from the cells. Names are escaped when they are drawn; this is the
/// safety net.
fn strip_unsafe(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().contains(is_unsafe) {
            let safe: String = cell.symbol().chars().filter(|c| !is_unsafe(*c)).collect();
            cell.set_symbol(if safe.is_empty() { " " } else { &safe });
        }
    }
}

/// Escapes a text from the server for the terminal.
fn escaped(text: &str) -> String {
    escape(text).into_owned()
}

/// Number of visible alerts.
pub(super) fn alert_rows(area: Rect, state: &State) -> usize {
    let rows = Areas::new(area, state).alerts.height;
    usize::from(rows.saturating_sub(1))
}

struct Areas {
    header: Rect,
    gpus: Rect,
    alerts: Rect,
    footer: Rect,
}

impl Areas {
    /// The GPUs get the height they need, up to two thirds. The alerts get the rest.
    fn new(area: Rect, state: &State) -> Self {
        let body = area.height.saturating_sub(2);
        let room = body.saturating_sub((body / 3).max(4));
        let gpus = gpus::height(state.gpus().len(), area.width, room);
        let rows = [Constraint::Length(1), Constraint::Length(gpus), Constraint::Fill(1), Constraint::Length(1)];
        let [header, gpus, alerts, footer] = Layout::vertical(rows).areas(area);
        Self { header, gpus, alerts, footer }
    }
}

fn header(state: &State, now: DateTime<FixedOffset>, width: u16) -> Line<'static> {
    let since = format_time(state.since.with_timezone(&now.timezone()), now);
    let (link, color) = match state.link {
        ConnectionState::Connecting => ("connecting", Color::Yellow),
        ConnectionState::Connected => ("connected", Color::Green),
        ConnectionState::Reconnecting => ("reconnecting", Color::Red),
    };
    // The end of the line is cut off, so the most important parts come first.
    let mut spans = vec![Span::from(link).fg(color).bold(), Span::from(format!(" since {since}"))];
    if let Some(heartbeat) = &state.heartbeat {
        spans.push(Span::from("  "));
        spans.push(behind(heartbeat));
    }
    let server = Span::from(state.server.clone()).bold();
    if width < 60 {
        spans.extend([Span::from("  "), server]);
    } else {
        spans.splice(0..0, [server, Span::from("  ")]);
    }
    if let Some(problem) = &state.problem {
        spans.push(Span::from(format!("  {}", escaped(problem))).fg(Color::Red));
    }
    Line::from(spans)
}

/// Number and age of the changes that this watch has not received yet.
fn behind(heartbeat: &pb::Heartbeat) -> Span<'static> {
    let behind = heartbeat.behind.unwrap_or_default();
    match heartbeat.behind_changes {
        0 => Span::from("behind 0"),
        changes => {
            let ms = behind.seconds * 1_000 + i64::from(behind.nanos / 1_000_000);
            Span::from(format!("behind {changes} ({ms} ms)")).fg(Color::Yellow)
        }
    }
}

fn footer(state: &State) -> Line<'static> {
    let key = |key: &'static str| Span::from(key).bold();
    Line::from(vec![
        key("q"),
        Span::from(" quit  "),
        key("?"),
        Span::from(" help  "),
        key("s"),
        Span::from(format!(" sort: {}  ", state.sort.name())),
        key("↑↓"),
        Span::from(" alerts"),
    ])
    .style(Style::new().dim())
}

fn draw_help(frame: &mut Frame) {
    let lines = HELP.map(|(key, what)| Line::from(vec![format!(" {key:<13}").bold(), what.into()]));
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX);
    let area = frame.area().centered(Constraint::Length(36), Constraint::Length(height));
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" Help ");
    frame.render_widget(Paragraph::new(lines.to_vec()).block(block), area);
}

fn draw_alerts(frame: &mut Frame, area: Rect, state: &State, now: DateTime<FixedOffset>) {
    let parts = [Constraint::Length(1), Constraint::Fill(1)];
    let [title, list] = Layout::vertical(parts).areas(area);
    let rows = usize::from(list.height);
    frame.render_widget(alerts_title(state, rows), title);
    if state.alerts().len() == 0 {
        let nothing = if state.complete { "No alerts." } else { "Waiting for the server." };
        frame.render_widget(Line::from(nothing).dim(), list);
        return;
    }
    let columns = Columns::for_width(list.width);
    let visible = state.alerts().skip(state.scroll).take(rows);
    let table_rows = visible.map(|alert| columns.row(alert, now));
    frame.render_widget(Table::new(table_rows, columns.widths()), list);
}

fn alerts_title(state: &State, rows: usize) -> Line<'static> {
    let (total, open) = (state.alerts().len(), state.open_alerts());
    let mut title = format!("Alerts  {total}, {open} open");
    if total == MAX_ALERTS {
        title += ", the newest";
    }
    if total > rows && rows > 0 {
        let last = total.min(state.scroll + rows);
        let _ = write!(title, "  {}–{last}", state.scroll + 1);
    }
    Line::from(title).style(Style::new().add_modifier(Modifier::REVERSED))
}

/// Columns of the list of alerts, by width of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// All columns, at full width.
    Wide,
    /// Shorter camera.
    Normal,
    /// Abbreviated words, without the rule.
    Narrow,
}

impl Columns {
    fn for_width(width: u16) -> Self {
        match width {
            0..60 => Self::Narrow,
            60..100 => Self::Normal,
            _ => Self::Wide,
        }
    }

    fn widths(self) -> Vec<Constraint> {
        let widths: &[u16] = match self {
            Self::Wide => &[11, 8, 12, 24],
            Self::Normal => &[11, 8, 12, 12],
            Self::Narrow => &[8, 4, 4],
        };
        let fixed = widths.iter().map(|width| Constraint::Length(*width));
        fixed.chain([Constraint::Fill(1)]).collect()
    }

    fn row(self, alert: &pb::Alert, now: DateTime<FixedOffset>) -> Row<'static> {
        let raised = time(alert.created_at.as_ref());
        let raised =
            raised.map_or_else(|| ABSENT.to_string(), |raised| format_time(raised.with_timezone(&now.timezone()), now));
        let (severity, short_severity, color) = match alert.severity() {
            Severity::Unspecified => (ABSENT, ABSENT, Style::new()),
            Severity::Low => ("low", "low", Style::new().blue()),
            Severity::Medium => ("medium", "med", Style::new().yellow()),
            Severity::High => ("high", "high", Style::new().light_red().bold()),
            Severity::Critical => ("critical", "crit", Style::new().white().on_red().bold()),
        };
        let (status, short_status, style) = match alert.status() {
            AlertStatus::Unspecified => (ABSENT, ABSENT, Style::new()),
            AlertStatus::Pending => ("pending", "pend", Style::new().bold()),
            AlertStatus::Delivered => ("delivered", "sent", Style::new()),
            AlertStatus::Acknowledged => ("acknowledged", "ack", Style::new().green()),
            AlertStatus::Dismissed => ("dismissed", "done", Style::new().dim()),
        };
        let camera = alert.camera_id.as_deref().map(escaped);
        let camera = camera.unwrap_or_else(|| ABSENT.to_string());
        let (severity, status) = match self {
            Self::Wide | Self::Normal => (severity, status),
            Self::Narrow => (short_severity, short_status),
        };
        let mut cells = vec![
            Cell::from(raised),
            Cell::from(Span::from(severity).style(color)),
            Cell::from(Span::from(status).style(style)),
            Cell::from(camera),
        ];
        if self != Self::Narrow {
            cells.push(Cell::from(subject(alert)));
        }
        let row = Row::new(cells);
        if alert.status() == AlertStatus::Dismissed { row.dim() } else { row }
    }
}

/// Name of the rule, and deduplication key of the alert.
fn subject(alert: &pb::Alert) -> Line<'static> {
    let metadata = alert.metadata.as_ref();
    let name = metadata.and_then(|metadata| metadata.fields.get("rule_name"));
    let key = escaped(&alert.dedup_key);
    match name.and_then(|name| name.kind.clone()) {
        Some(prost_types::value::Kind::StringValue(name)) => {
            Line::from(vec![Span::from(escaped(&name)), Span::from(format!("  {key}")).dim()])
        }
        _ => Line::from(key),
    }
}

/// Time of day. Month and day are added for another day than today.
fn format_time(time: DateTime<FixedOffset>, now: DateTime<FixedOffset>) -> String {
    let format = if time.date_naive() == now.date_naive() { "%H:%M:%S" } else { "%m-%d %H:%M" };
    time.format(format).to_string()
}

#[cfg(test)]
mod tests;
