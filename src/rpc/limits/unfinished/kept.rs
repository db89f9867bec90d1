//! Bytes of a message that has not arrived whole.
//!
//! A decoder reserves the announced length of a message when it sees the first bytes of it, and frames that wait pin the
//! buffers of the transport. Chunks take little more memory than the bytes that have arrived.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Sizes of chunks, in bytes.
const SMALLEST: usize = 256;
const LARGEST: usize = 16 << 10;

/// Bytes in the order of their arrival: first those that may be read, then those that are held back.
#[derive(Debug, Default)]
pub(super) struct Kept {
    released: VecDeque<Bytes>,
    chunks: Vec<BytesMut>,
    held_back: usize,
}

impl Kept {
    /// Holds bytes back.
    pub(super) fn hold_back(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = |chunk: &BytesMut| chunk.capacity() - chunk.len();
            if self.chunks.last().is_none_or(|chunk| room(chunk) == 0) {
                let size = self.held_back.clamp(SMALLEST, LARGEST);
                self.chunks.push(BytesMut::with_capacity(size));
            }
            let Some(chunk) = self.chunks.last_mut() else {
                return;
            };
            let (part, rest) = bytes.split_at(bytes.len().min(room(chunk)));
            chunk.extend_from_slice(part);
            self.held_back += part.len();
            bytes = rest;
        }
    }

    /// Lets all bytes that were held back be read, and then these.
    pub(super) fn release(&mut self, bytes: Bytes) {
        self.held_back = 0;
        let chunks = std::mem::take(&mut self.chunks).into_iter();
        self.released.extend(chunks.map(BytesMut::freeze));
        if !bytes.is_empty() {
            self.released.push_back(bytes);
        }
    }

    /// Number of bytes that are held back.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back as u64
    }

    /// Lets these bytes be read before all others.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.released.push_front(bytes);
    }

    /// The next bytes that may be read.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.released.pop_front()
    }

    /// Returns true if nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.released.is_empty() && self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_and_take_little_more_than_themselves() {
        let bytes: Vec<_> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
        for size in [1, 10, 1_000, 16_384, 100_000] {
            let mut kept = Kept::default();
            assert!(kept.is_empty());
            for piece in bytes.chunks(size) {
                kept.hold_back(piece);
                assert!(kept.next().is_none());
            }
            let capacity: usize = kept.chunks.iter().map(BytesMut::capacity).sum();
            assert!(capacity <= bytes.len() + LARGEST, "{size}: {capacity}");
            kept.release(Bytes::from_static(b"end"));
            let read: Vec<_> = std::iter::from_fn(|| kept.next()).flatten().collect();
            assert_eq!(read, [&bytes[..], b"end"].concat(), "{size}");
            assert!(kept.is_empty());
        }
    }
}
