//! Escaping of untrusted text: defines the characters that may deceive a reader or control a
//! terminal.
//!
//! Logs, mails, terminals and metric labels show names chosen by clients. A line break forges a log
//! line, an escape character controls the terminal, and a bidirectional mark reverses the following
//! text.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

/// Returns true for characters to be escaped: controls, line and paragraph separators, and
/// direction or invisible marks.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Escapes every unsafe character: `\n`, `\t`, `\u{1b}`. Other characters are unchanged, including
/// backslashes.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    // Writing to a string cannot fail.
    let _ = Escaping(&mut escaped).write_str(text);
    Cow::Owned(escaped)
}

/// Writer that escapes all text.
#[derive(Debug)]
pub struct Escaping<'a, W: fmt::Write + ?Sized>(pub &'a mut W);

impl<W: fmt::Write + ?Sized> fmt::Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut safe = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| is_unsafe(*c)) {
            self.0.write_str(&text[safe..at])?;
            write!(self.0, "{}", c.escape_default())?;
            safe = at + c.len_utf8();
        }
        self.0.write_str(&text[safe..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_escaped_and_nothing_else() {
        for (text, expected) in [
            ("front door", "front door"),
            ("Überwachung \\n \"x\" 日本 🚪", "Überwachung \\n \"x\" 日本 🚪"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7}\u{9b}", "\\u{1b}[2J\\u{7}\\u{9b}"),
            ("\u{202e}abc\u{2066}\u{200f}", "\\u{202e}abc\\u{2066}\\u{200f}"),
            ("\u{2028}\u{feff}\u{0}", "\\u{2028}\\u{feff}\\u{0}"),
        ] {
            assert_eq!(escape(text), expected);
            assert!(!escape(text).chars().any(is_unsafe));
        }
        assert!(matches!(escape("plain"), Cow::Borrowed(_)));
    }
}
