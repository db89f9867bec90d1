//! The codec of all services: that of prost, with messages looked at before they are decoded.

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

use super::limits::admission::Call;

/// Size from which decoding a message takes long enough that others are not kept waiting for it.
const LARGE: usize = 256 << 10;

/// Room for messages that an open call has at first, in bytes. It grows with what is received and sent.
const BUFFER: usize = 2 << 10;

/// Number of bytes that go to the transport at a time.
const YIELD_AT: usize = 32 << 10;

/// Encodes `T` and decodes `U`. On a server, what a message takes is bounded before it is decoded.
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
        ProstEncoder::new(BufferSettings::new(BUFFER, YIELD_AT))
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::new()
    }
}

/// Decodes `U`.
#[derive(Debug)]
pub struct BoundedDecoder<U> {
    inner: ProstDecoder<U>,
    /// The call whose messages are decoded. `None` in a client.
    call: Option<Arc<Call>>,
}

impl<U: Message + Default + Send + 'static> BoundedDecoder<U> {
    /// A decoder of the messages of the call that is running.
    pub fn new() -> Self {
        Self {
            inner: ProstDecoder::new(BufferSettings::new(BUFFER, YIELD_AT)),
            call: Call::current(),
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
        let Some(call) = &self.call else {
            return self.inner.decode(buffer);
        };
        let (inner, length) = (&mut self.inner, buffer.remaining());
        let mut decode = || {
            // The whole message is one piece: it is cut from one buffer.
            call.admit(buffer.chunk())?;
            inner.decode(buffer)
        };
        let is_threaded = || {
            Handle::try_current()
                .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread)
        };
        if length >= LARGE && is_threaded() {
            return block_in_place(decode);
        }
        decode()
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}
