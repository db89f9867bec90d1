//! How the state looks, on a terminal of any size.

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

use super::state::{Link, MOST_ALERTS, State, time};
use crate::{
    escape::{escape, is_unsafe},
    pb::{self, AlertStatus, Severity},
};

mod gpus;

/// What stands for a value that is absent.
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

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, state: &State, now: DateTime<FixedOffset>) {
    let areas = Areas::of(frame.area(), state);
    frame.render_widget(header(state, now, areas.header.width), areas.header);
    gpus::draw(frame, areas.gpus, state, now);
    alerts(frame, areas.alerts, state, now);
    frame.render_widget(footer(state), areas.footer);
    if state.help {
        help(frame);
    }
    strip(frame.buffer_mut());
}

/// Takes what a terminal would obey out of the cells: names are escaped where they are shown, and whatever is forgotten
/// ends here.
fn strip(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().contains(is_unsafe) {
            let safe: String = cell.symbol().chars().filter(|c| !is_unsafe(*c)).collect();
            cell.set_symbol(if safe.is_empty() { " " } else { &safe });
        }
    }
}

/// A text of somebody else.
fn shown(text: &str) -> String {
    escape(text).into_owned()
}

/// How many alerts can be seen at once.
pub(super) fn alert_rows(area: Rect, state: &State) -> usize {
    let rows = Areas::of(area, state).alerts.height;
    usize::from(rows.saturating_sub(1))
}

struct Areas {
    header: Rect,
    gpus: Rect,
    alerts: Rect,
    footer: Rect,
}

impl Areas {
    /// The GPUs get what they need, the alerts the rest, and a third if it is little.
    fn of(area: Rect, state: &State) -> Self {
        let body = area.height.saturating_sub(2);
        let room = body.saturating_sub((body / 3).max(4));
        let gpus = gpus::height(state.gpus().len(), area.width, room);
        let rows = [
            Constraint::Length(1),
            Constraint::Length(gpus),
            Constraint::Fill(1),
            Constraint::Length(1),
        ];
        let [header, gpus, alerts, footer] = Layout::vertical(rows).areas(area);
        Self {
            header,
            gpus,
            alerts,
            footer,
        }
    }
}

fn header(state: &State, now: DateTime<FixedOffset>, width: u16) -> Line<'static> {
    let since = at(state.since.with_timezone(&now.timezone()), now);
    let (link, color) = match state.link {
        Link::Connecting => ("connecting", Color::Yellow),
        Link::Connected => ("connected", Color::Green),
        Link::Reconnecting => ("reconnecting", Color::Red),
    };
    // What has no room is cut off: what matters most comes first.
    let mut spans = vec![
        Span::from(link).fg(color).bold(),
        Span::from(format!(" since {since}")),
    ];
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
        spans.push(Span::from(format!("  {}", shown(problem))).fg(Color::Red));
    }
    Line::from(spans)
}

/// How much there is that this watch has not been sent yet.
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

fn help(frame: &mut Frame) {
    let lines = HELP.map(|(key, what)| Line::from(vec![format!(" {key:<13}").bold(), what.into()]));
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX);
    let area = frame
        .area()
        .centered(Constraint::Length(36), Constraint::Length(height));
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" Help ");
    frame.render_widget(Paragraph::new(lines.to_vec()).block(block), area);
}

fn alerts(frame: &mut Frame, area: Rect, state: &State, now: DateTime<FixedOffset>) {
    let parts = [Constraint::Length(1), Constraint::Fill(1)];
    let [title, list] = Layout::vertical(parts).areas(area);
    let rows = usize::from(list.height);
    frame.render_widget(alerts_title(state, rows), title);
    if state.alerts().len() == 0 {
        let nothing = if state.complete {
            "No alerts."
        } else {
            "Waiting for the server."
        };
        frame.render_widget(Line::from(nothing).dim(), list);
        return;
    }
    let columns = Columns::of(list.width);
    let shown = state.alerts().skip(state.scroll).take(rows);
    let shown = shown.map(|alert| columns.row(alert, now));
    frame.render_widget(Table::new(shown, columns.widths()), list);
}

fn alerts_title(state: &State, rows: usize) -> Line<'static> {
    let (all, open) = (state.alerts().len(), state.open_alerts());
    let mut title = format!("Alerts  {all}, {open} open");
    if all == MOST_ALERTS {
        title += ", the newest";
    }
    if all > rows && rows > 0 {
        let last = all.min(state.scroll + rows);
        let _ = write!(title, "  {}–{last}", state.scroll + 1);
    }
    Line::from(title).style(Style::new().add_modifier(Modifier::REVERSED))
}

/// What of an alert there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// Everything.
    Wide,
    /// Less of the camera.
    Normal,
    /// Abbreviated, without the rule.
    Narrow,
}

impl Columns {
    fn of(width: u16) -> Self {
        match width {
            0..60 => Self::Narrow,
            60..100 => Self::Normal,
            _ => Self::Wide,
        }
    }

    fn widths(self) -> Vec<Constraint> {
        let fixed: &[u16] = match self {
            Self::Wide => &[11, 8, 12, 24],
            Self::Normal => &[11, 8, 12, 12],
            Self::Narrow => &[8, 4, 4],
        };
        let fixed = fixed.iter().map(|width| Constraint::Length(*width));
        fixed.chain([Constraint::Fill(1)]).collect()
    }

    fn row(self, alert: &pb::Alert, now: DateTime<FixedOffset>) -> Row<'static> {
        let raised = time(alert.created_at.as_ref());
        let raised = raised.map_or_else(
            || ABSENT.to_string(),
            |raised| at(raised.with_timezone(&now.timezone()), now),
        );
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
        let camera = alert.camera_id.as_deref().map(shown);
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
        if alert.status() == AlertStatus::Dismissed {
            row.dim()
        } else {
            row
        }
    }
}

/// The name of the rule, and what makes the alert the same as another.
fn subject(alert: &pb::Alert) -> Line<'static> {
    let metadata = alert.metadata.as_ref();
    let name = metadata.and_then(|metadata| metadata.fields.get("rule_name"));
    let key = shown(&alert.dedup_key);
    match name.and_then(|name| name.kind.clone()) {
        Some(prost_types::value::Kind::StringValue(name)) => Line::from(vec![
            Span::from(shown(&name)),
            Span::from(format!("  {key}")).dim(),
        ]),
        _ => Line::from(key),
    }
}

/// A time of day, with the date if that is another than today's.
fn at(time: DateTime<FixedOffset>, now: DateTime<FixedOffset>) -> String {
    let format = if time.date_naive() == now.date_naive() {
        "%H:%M:%S"
    } else {
        "%m-%d %H:%M"
    };
    time.format(format).to_string()
}

#[cfg(test)]
mod tests;
