//! How the API's messages become bytes: as tonic does it, but with buffers of the size of one message. tonic takes twice
//! 8 KiB for each call, whatever is said in it; a longer message, and a stream, has its buffers grow.

use std::marker::PhantomData;

use tonic::codec::BufferSettings;
use tonic_prost::ProstCodec;

/// What a buffer begins with, in bytes.
const BUFFER_BYTES: usize = 1024;
/// What a stream encodes before it is sent on, in bytes; tonic's own.
const YIELD_BYTES: usize = 32 * 1024;

/// The codec of messages `T` one way and `U` the other.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as tonic::codec::Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as tonic::codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}
