//! Codec of all services: prost, with memory bounds checked before a message is decoded.

use std::{marker::PhantomData, sync::Arc};

use bytes::Buf;
use prost::Message;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::block_in_place,
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::limits::admission::RequestMemory;

/// Size in bytes from which decoding takes long enough to block other tasks.
const BLOCKING_FROM_BYTES: usize = 256 << 10;

/// Initial buffer of an open call in bytes. The buffer grows with received and sent messages.
const INITIAL_BUFFER_BYTES: usize = 2 << 10;

/// Number of bytes passed to the transport at a time.
const YIELD_AT_BYTES: usize = 32 << 10;

/// Encodes `T` and decodes `U`. On a server, the memory of a message is bounded before decoding.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(INITIAL_BUFFER_BYTES, YIELD_AT_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::new()
    }
}

/// Decoder of messages of type `U`, with bounded memory.
#[derive(Debug)]
pub struct BoundedDecoder<U> {
    inner: ProstDecoder<U>,
    /// Memory of the call whose messages are decoded. `None` in a client.
    memory: Option<Arc<RequestMemory>>,
}

impl<U: Message + Default + Send + 'static> BoundedDecoder<U> {
    /// Creates a decoder for messages of the current call.
    pub fn new() -> Self {
        Self {
            inner: ProstDecoder::new(BufferSettings::new(INITIAL_BUFFER_BYTES, YIELD_AT_BYTES)),
            memory: RequestMemory::current(),
        }
    }
}

impl<U: Message + Default + Send + 'static> Default for BoundedDecoder<U> {
    fn default() -> Self {
        Self::new()
    }
}

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let Some(memory) = &self.memory else {
            return self.inner.decode(buffer);
        };
        let (inner, length) = (&mut self.inner, buffer.remaining());
        let mut decode = || {
            // The message is contiguous: tonic cuts it from a single buffer.
            memory.admit(buffer.chunk())?;
            inner.decode(buffer)
        };
        let is_threaded =
            || Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if length >= BLOCKING_FROM_BYTES && is_threaded() {
            return block_in_place(decode);
        }
        decode()
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}
