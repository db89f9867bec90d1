//! Log format: one line per event, regardless of the text in its fields.

use std::fmt::Write;

use tracing_subscriber::{
    field::MakeExt,
    fmt::{
        FormatFields,
        format::{Writer, debug_fn},
    },
};

use crate::escape::Escaping;

pub(crate) mod reminder;
pub(crate) mod retry;

/// Formats the message and fields of an event. Unsafe characters are escaped here, so that callers
/// need no escaping.
pub fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    let field = |writer: &mut Writer<'_>, field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
        let name = field.name();
        if name != "message" {
            let name = name.trim_start_matches("r#");
            if writer.has_ansi_escapes() {
                write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            } else {
                write!(writer, "{name}=")?;
            }
        }
        write!(Escaping(writer), "{value:?}")
    };
    debug_fn(field).delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::escape::is_unsafe;

    /// Writer that captures log output.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(fields())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_its_fields_hold() {
        let name = "x\n2026-11-30 ERROR forged \u{1b}[2J\u{202e}";
        let text = logged(|| {
            let span = tracing::info_span!("call", camera = %name);
            let _entered = span.enter();
            let error = io::Error::other(name);
            tracing::info!(channel = %name, count = 7, ?name, text = name, %error, "{name} is done");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end().chars().any(is_unsafe), "{text:?}");
        assert!(text.contains(r"channel=x\n2026-11-30") && text.contains(" count=7 "), "{text}");
        assert!(text.contains(r"forged \u{1b}[2J\u{202e} is done"), "{text}");
    }
}
