//! Log messages of background loops that retry after a failure.

use std::{collections::HashMap, sync::LazyLock};

use parking_lot::Mutex;

use super::reminder::Reminder;
use crate::error::{Chain, Error};

/// Reminders by message.
static REMINDERS: LazyLock<Mutex<HashMap<&'static str, Reminder>>> = LazyLock::new(Mutex::default);

/// Logs a failure of a loop that retries.
///
/// A database that is away or busy is reported elsewhere, and write conflicts are normal: both are logged at `debug`.
/// Any other failure may last for ever, and is a warning: at once, and then once a minute for each message.
pub(crate) fn retrying(error: &Error, message: &'static str) {
    let is_expected = error.is_unavailable() || matches!(error, Error::Contended | Error::ShuttingDown);
    let is_due = !is_expected && REMINDERS.lock().entry(message).or_default().is_due();
    let error = Chain(error);
    if is_due {
        tracing::warn!(%error, "{message}");
    } else {
        tracing::debug!(%error, "{message}");
    }
}
