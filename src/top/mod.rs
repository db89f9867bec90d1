//! `watchpost top`: shows the GPUs and the alerts of a server live in a terminal.
//!
//! A plain client of the public API, without access to the state of this process.

use std::{io, ops::ControlFlow, time::Duration};

use chrono::{DateTime, Local, Utc};
use ratatui::{DefaultTerminal, crossterm::event};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use self::state::{ConnectionEvent, State};
use crate::client::Signals;

mod connection;
#[cfg(test)]
mod examples;
mod state;
mod view;

/// Minimum time between two drawings.
const FRAME: Duration = Duration::from_millis(50);

/// Error that prevents or ends the view.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard output is not a terminal.
    #[error("standard output is not a terminal")]
    NotATerminal,
    /// The terminal cannot be read or drawn.
    #[error("the terminal: {0}")]
    Terminal(#[from] io::Error),
    /// Internal error: the watch task ended.
    #[error("the watch ended by itself")]
    WatchEnded,
}

/// Shows the state of the server at this URL until a key or a signal ends the view.
pub async fn run(server: &str) -> Result<(), Error> {
    if !io::IsTerminal::is_terminal(&io::stdout()) {
        return Err(Error::NotATerminal);
    }
    let mut signals = Signals::listen()?;
    let (sender, events) = mpsc::channel(1_024);
    // Started before the terminal changes, because both end with the process.
    let watch = tokio::spawn(connection::watch(server.to_string(), sender));
    let mut screen = Screen::open()?;
    let state = State::new(server.to_string(), Utc::now());
    let result = run_loop(&mut screen, state, events, &mut signals).await;
    watch.abort();
    drop(screen);
    result
}

async fn run_loop(
    screen: &mut Screen,
    mut state: State,
    mut events: mpsc::Receiver<ConnectionEvent>,
    signals: &mut Signals,
) -> Result<(), Error> {
    let mut keys = terminal_events();
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ages grow even without events.
    let mut seconds = interval(Duration::from_secs(1));
    let mut changed = true;
    loop {
        tokio::select! {
            event = keys.recv() => {
                let event = event.ok_or_else(|| io::Error::other("the terminal sends no more events"))?;
                if let Some(key) = event.as_key_event()
                    && state.press(key) == ControlFlow::Break(())
                {
                    return Ok(());
                }
                changed = true;
            }
            event = events.recv() => {
                state.apply_event(event.ok_or(Error::WatchEnded)?, Utc::now());
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

/// Terminal in raw mode. Dropping restores the terminal; a panic restores it before its message.
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
        // A second restore would move the cursor above the panic message.
        if !std::thread::panicking() {
            let _ = ratatui::try_restore();
        }
    }
}

/// Events of the terminal. The reading thread ends with the process, because a read cannot be
/// cancelled.
fn terminal_events() -> mpsc::Receiver<event::Event> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}
