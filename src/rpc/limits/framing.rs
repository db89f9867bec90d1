//! Framing of request messages: each message has a prefix with its length.

/// Parser position in the bytes of a request. Content is not stored.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    prefix: [u8; Self::PREFIX_BYTES],
    /// Number of prefix bytes read.
    prefix_len: usize,
    /// Length of the current message, once its prefix is read.
    length: u64,
    /// Missing bytes of the current message, once its prefix is read.
    missing: u64,
    /// Number of messages that have begun.
    message_count: u64,
}

impl Framing {
    /// Length of the prefix: a flag, and the length of the message as 32 bits.
    pub(crate) const PREFIX_BYTES: usize = 5;

    /// Reads the next bytes. Returns the number of bytes up to the end of the last complete
    /// message.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> usize {
        let (mut rest, mut complete) = (bytes, 0);
        while !rest.is_empty() {
            if self.prefix_len < Self::PREFIX_BYTES {
                self.message_count += u64::from(self.prefix_len == 0);
                let count = rest.len().min(Self::PREFIX_BYTES - self.prefix_len);
                let (part, after) = rest.split_at(count);
                self.prefix[self.prefix_len..self.prefix_len + count].copy_from_slice(part);
                self.prefix_len += count;
                rest = after;
                if self.prefix_len == Self::PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.length = u32::from_be_bytes(length).into();
                    self.missing = self.length;
                }
            } else {
                let count = self.missing.min(rest.len() as u64);
                self.missing -= count;
                // `count` is at most the length of `rest`.
                rest = rest.get(usize::try_from(count).unwrap_or(usize::MAX)..).unwrap_or_default();
            }
            if self.prefix_len == Self::PREFIX_BYTES && self.missing == 0 {
                self.prefix_len = 0;
                complete = bytes.len() - rest.len();
            }
        }
        complete
    }

    /// Returns the announced length of the incomplete message, in bytes. 0 before its prefix is
    /// read.
    pub(crate) fn length(&self) -> u64 {
        if self.prefix_len == Self::PREFIX_BYTES { self.length } else { 0 }
    }

    /// Returns the number of messages that have begun.
    pub(crate) fn message_count(&self) -> u64 {
        self.message_count
    }

    /// Returns true if a message has begun and not ended.
    pub(crate) fn is_inside_message(&self) -> bool {
        self.prefix_len > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_wherever_their_bytes_are_cut() {
        // Messages of three bytes, of none, and of two with one byte missing.
        let bytes = [0, 0, 0, 0, 3, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 7];
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            let (first, second) = bytes.split_at(cut);
            // The messages end after 8 and 13 bytes.
            let ends = |upto: usize| [0, 8, 13].into_iter().rfind(|end| *end <= upto).unwrap_or(0);
            assert_eq!(framing.read(first), ends(cut), "{cut}");
            assert_eq!(framing.read(second), 13_usize.saturating_sub(cut), "{cut}");
            assert_eq!((framing.message_count(), framing.length()), (3, 2), "{cut}");
            assert!(framing.is_inside_message());
            assert_eq!(framing.read(&[7]), 1);
            assert_eq!(framing.length(), 0);
            assert!(!framing.is_inside_message());
            assert_eq!(framing.message_count(), 3);
        }
        let mut framing = Framing::default();
        for (at, byte) in bytes.iter().enumerate() {
            framing.read(&[*byte]);
            assert_eq!(framing.is_inside_message(), ![7, 12].contains(&at), "{at}");
        }
    }
}
