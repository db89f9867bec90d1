//! Buffer for the bytes of an incomplete message.
//!
//! A decoder reserves the announced length at the first bytes of a message, and waiting frames pin
//! the buffers of the transport. The chunks of this buffer take little more memory than the
//! received bytes.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Minimum and maximum size of a chunk, in bytes.
const MIN_CHUNK_BYTES: usize = 256;
const MAX_CHUNK_BYTES: usize = 16 << 10;

/// Bytes in order of arrival: released bytes first, then bytes held back.
#[derive(Debug, Default)]
pub(super) struct BodyBuffer {
    released: VecDeque<Bytes>,
    chunks: Vec<BytesMut>,
    held_back: usize,
}

impl BodyBuffer {
    /// Appends bytes that are held back until the message is complete.
    pub(super) fn hold_back(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let free_bytes = |chunk: &BytesMut| chunk.capacity() - chunk.len();
            if self.chunks.last().is_none_or(|chunk| free_bytes(chunk) == 0) {
                let size = self.held_back.clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES);
                self.chunks.push(BytesMut::with_capacity(size));
            }
            let Some(chunk) = self.chunks.last_mut() else {
                return;
            };
            let (part, rest) = bytes.split_at(bytes.len().min(free_bytes(chunk)));
            chunk.extend_from_slice(part);
            self.held_back += part.len();
            bytes = rest;
        }
    }

    /// Releases all bytes held back, followed by `bytes`.
    pub(super) fn release(&mut self, bytes: Bytes) {
        self.held_back = 0;
        let chunks = std::mem::take(&mut self.chunks).into_iter();
        self.released.extend(chunks.map(BytesMut::freeze));
        if !bytes.is_empty() {
            self.released.push_back(bytes);
        }
    }

    /// Returns the number of bytes held back.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back as u64
    }

    /// Inserts bytes before all released bytes.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.released.push_front(bytes);
    }

    /// Removes and returns the next released bytes.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.released.pop_front()
    }

    /// Returns true if the buffer is empty.
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
            let mut buffer = BodyBuffer::default();
            assert!(buffer.is_empty());
            for piece in bytes.chunks(size) {
                buffer.hold_back(piece);
                assert!(buffer.next().is_none());
            }
            let capacity: usize = buffer.chunks.iter().map(BytesMut::capacity).sum();
            assert!(capacity <= bytes.len() + MAX_CHUNK_BYTES, "{size}: {capacity}");
            buffer.release(Bytes::from_static(b"end"));
            let read: Vec<_> = std::iter::from_fn(|| buffer.next()).flatten().collect();
            assert_eq!(read, [&bytes[..], b"end"].concat(), "{size}");
            assert!(buffer.is_empty());
        }
    }
}
