//! `watchpost top`: the GPUs and the alerts of a server, live, in a terminal.
//!
//! It is a client as any other: of this process it knows nothing but the API.

use std::{io, ops::ControlFlow, time::Duration};

use chrono::{DateTime, Local, Utc};
use ratatui::{DefaultTerminal, crossterm::event};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::state::{Heard, State};
use crate::client::Signals;

mod connection;
#[cfg(test)]
mod examples;
mod state;
mod view;

/// How soon after another the terminal is drawn.
const FRAME: Duration = Duration::from_millis(50);

/// Why the view cannot be shown, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to draw on.
    #[error("standard output is not a terminal")]
    NotATerminal,
    /// It cannot be drawn on.
    #[error("the terminal: {0}")]
    Terminal(#[from] io::Error),
    /// A fault of ours.
    #[error("the watch ended by itself")]
    WatchEnded,
}

/// Shows what the server at this URL says, until a key or a signal ends it.
pub async fn run(server: &str) -> Result<(), Error> {
    if !io::IsTerminal::is_terminal(&io::stdout()) {
        return Err(Error::NotATerminal);
    }
    let mut signals = Signals::listen()?;
    let (tell, heard) = mpsc::channel(1_024);
    // Before the terminal is changed: both end with the process.
    let watch = tokio::spawn(connection::watch(server.to_string(), tell));
    let mut screen = Screen::open()?;
    let state = State::new(server.to_string(), Utc::now());
    let ended = show(&mut screen, state, heard, &mut signals).await;
    watch.abort();
    drop(screen);
    ended
}

async fn show(
    screen: &mut Screen,
    mut state: State,
    mut heard: mpsc::Receiver<Heard>,
    signals: &mut Signals,
) -> Result<(), Error> {
    let mut keys = keys();
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ages grow even if nothing is heard.
    let mut seconds = interval(Duration::from_secs(1));
    let mut changed = true;
    loop {
        tokio::select! {
            event = keys.recv() => {
                let event = event.ok_or_else(|| io::Error::other("it gives no keys any more"))?;
                if let Some(key) = event.as_key_event()
                    && state.press(key) == ControlFlow::Break(())
                {
                    return Ok(());
                }
                changed = true;
            }
            heard = heard.recv() => {
                state.hear(heard.ok_or(Error::WatchEnded)?, Utc::now());
                changed = true;
            }
            () = signals.wait() => return Ok(()),
            _ = seconds.tick() => changed = true,
            _ = frames.tick(), if changed => {
                screen.draw(&mut state, Local::now().fixed_offset())?;
                changed = false;
            }
        }
    }
}

/// The terminal while it is ours. It is given back as it was when this is dropped; a panic gives it
/// back before it says anything.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn open() -> Result<Self, io::Error> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }

    fn draw(&mut self, state: &mut State, now: DateTime<chrono::FixedOffset>) -> io::Result<()> {
        self.terminal.draw(|frame| {
            state.set_page(view::alert_rows(frame.area(), state));
            view::draw(frame, state, now);
        })?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        // A second time would put the cursor back above what the panic has said.
        if !std::thread::panicking() {
            let _ = ratatui::try_restore();
        }
    }
}

/// What the terminal tells. The thread that waits for it ends with the process: a read cannot be
/// called off.
fn keys() -> mpsc::Receiver<event::Event> {
    let (tell, keys) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if tell.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}
