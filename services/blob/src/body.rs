//! Bodies as streams: written without knowing the size, read without holding them.

use std::cell::RefCell;
use std::io::Read;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hikyaku_mail::id::MessageId;
use hikyaku_proto::convert::message_id;
use hikyaku_proto::v1::{BlobRef, Body, body::Content};

use crate::{BlobError, BlobReader, BlobWriter, Blobs};

/// Content up to this many octets stays inside log records.
pub const INLINE_MAX: usize = hikyaku_proto::INLINE_BYTES_MAX;
/// The fastest of zstd's usual levels: level 3 saves 2 % of a mail's octets for half as much time again, and time is what
/// limits a node.
const ZSTD_LEVEL: i32 = 1;
/// Room for content to begin with: most mails fit, and none grows through many small buffers.
const FIRST: usize = 16 * 1024;
/// Chunks handed out by [`BodyReader`].
const CHUNK: usize = 32 * 1024;

thread_local! {
    // a compression context is half a megabyte to set up, and bodies are small
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
    // so is one for the way back
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
}

/// A context, and where it writes: a frame is copied out at its own length.
struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
}

/// A body being received. Memory stays under [`INLINE_MAX`] plus one chunk, whatever the size.
pub struct BodyWriter {
    blobs: Arc<dyn Blobs>,
    id: MessageId,
    size: u64,
    hash: blake3::Hasher,
    memory: BytesMut,
    blob: Option<Box<dyn BlobWriter>>,
}

impl BodyWriter {
    /// A body for message `id`, which goes to `blobs` once it is large.
    pub fn new(blobs: Arc<dyn Blobs>, id: MessageId) -> BodyWriter {
        BodyWriter {
            blobs,
            id,
            size: 0,
            hash: blake3::Hasher::new(),
            memory: BytesMut::with_capacity(FIRST),
            blob: None,
        }
    }

    /// Octets so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends `chunk`.
    ///
    /// # Errors
    /// When the blob store fails; the body is lost then.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.size += chunk.len() as u64;
        self.memory.extend_from_slice(chunk);
        let spill_at = if self.blob.is_some() {
            CHUNK
        } else {
            INLINE_MAX
        };
        if self.memory.len() > spill_at {
            self.spill().await
        } else {
            Ok(())
        }
    }

    async fn spill(&mut self) -> Result<(), BlobError> {
        let blob = match self.blob.take() {
            Some(blob) => blob,
            None => self.blobs.create(self.id).await?,
        };
        let chunk = self.memory.split().freeze();
        self.hash.update(&chunk);
        self.blob.insert(blob).write(chunk).await
    }

    /// Ends the body. A large one is durable in the blob store when this returns.
    ///
    /// # Errors
    /// When the blob store or the compressor fails; nothing is kept then.
    pub async fn finish(mut self) -> Result<Body, BlobError> {
        let content = if self.blob.is_some() {
            self.spill().await?;
            if let Some(blob) = self.blob.take() {
                blob.commit().await?;
            }
            Content::Blob(BlobRef {
                id: Bytes::copy_from_slice(&self.id.to_bytes()),
            })
        } else {
            // all at once: hashed in the pieces the network gave, it takes several times as long
            self.hash.update(&self.memory);
            Content::Zstd(compress(&self.memory)?)
        };
        let blake3 = Bytes::copy_from_slice(self.hash.finalize().as_bytes());
        Ok(Body {
            size: self.size,
            blake3,
            content: Some(content),
        })
    }
}

/// One zstd frame of `content`.
fn compress(content: &[u8]) -> Result<Bytes, BlobError> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let failed =
            |error: std::io::Error| BlobError::Unavailable(format!("compressing: {error}"));
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor {
                context: zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(failed)?,
                frame: Vec::new(),
            }),
        };
        let Compressor { context, frame } = compressor;
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(content.len()));
        context.compress_to_buffer(content, frame).map_err(failed)?;
        Ok(Bytes::copy_from_slice(frame))
    })
}

/// The content of a zstd frame, which must have `size` octets.
fn decompress(frame: &[u8], size: usize) -> Result<Bytes, BlobError> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let failed =
            |error: std::io::Error| BlobError::Unavailable(format!("decompressing: {error}"));
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new().map_err(failed)?),
        };
        let content = decompressor.decompress(frame, size).map_err(failed)?;
        if content.len() != size {
            return Err(BlobError::Unavailable(
                "body is not as long as it says".into(),
            ));
        }
        Ok(Bytes::from(content))
    })
}

/// An inline body of `content`, for what this site writes itself (DSNs).
///
/// # Errors
/// When the compressor fails or `content` is over [`INLINE_MAX`].
pub fn inline_body(content: &[u8]) -> Result<Body, BlobError> {
    if content.len() > INLINE_MAX {
        return Err(BlobError::Unavailable(
            "content too large to be inline".into(),
        ));
    }
    Ok(Body {
        size: content.len() as u64,
        blake3: Bytes::copy_from_slice(blake3::hash(content).as_bytes()),
        content: Some(Content::Zstd(compress(content)?)),
    })
}

/// A body being read, from whichever place it is in.
pub enum BodyReader {
    /// Inline, and no longer than a chunk: decompressed at once.
    Small {
        /// The frame, until it was read.
        frame: Option<Bytes>,
        /// Octets of the content.
        size: usize,
    },
    /// Inline: decompressed as it is read.
    Inline {
        /// The decoder over the frame.
        decoder: Box<zstd::stream::read::Decoder<'static, std::io::Cursor<Bytes>>>,
        /// Octets still owed by the frame, against a frame that lies.
        left: u64,
    },
    /// In the blob store, which may be a disk that rots: what it gives is checked on the way.
    Blob {
        /// The blob.
        reader: Box<dyn BlobReader>,
        /// What it must be.
        owed: Box<Owed>,
    },
}

/// What a blob still has to be to be the body that was put there.
pub struct Owed {
    left: u64,
    seen: blake3::Hasher,
    /// Its digest; empty where nobody knows.
    blake3: Bytes,
}

impl Owed {
    /// Notes a chunk, or the end. False when the blob is not what it must be.
    fn note(&mut self, chunk: Option<&Bytes>) -> bool {
        let Some(chunk) = chunk else {
            let is_known = self.blake3.len() == blake3::OUT_LEN;
            return self.left == 0
                && (!is_known || self.seen.finalize().as_bytes()[..] == self.blake3[..]);
        };
        self.seen.update(chunk);
        let left = self.left.checked_sub(chunk.len() as u64);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

impl BodyReader {
    /// Opens `body`.
    ///
    /// # Errors
    /// When it is malformed or its blob is not to be had.
    pub async fn open(blobs: &dyn Blobs, body: &Body) -> Result<BodyReader, BlobError> {
        let malformed = || BlobError::Unavailable("malformed body reference".into());
        match body.content.as_ref().ok_or_else(malformed)? {
            Content::Zstd(frame) if body.size <= CHUNK as u64 => Ok(BodyReader::Small {
                frame: Some(frame.clone()),
                size: body.size as usize,
            }),
            Content::Zstd(frame) => {
                let cursor = std::io::Cursor::new(frame.clone());
                let decoder = zstd::stream::read::Decoder::with_buffer(cursor)
                    .map_err(|error| BlobError::Unavailable(error.to_string()))?;
                Ok(BodyReader::Inline {
                    decoder: Box::new(decoder),
                    left: body.size,
                })
            }
            Content::Blob(blob) => {
                let id = message_id(&blob.id).map_err(|_| malformed())?;
                Ok(BodyReader::Blob {
                    reader: blobs.open(id).await?,
                    owed: Box::new(Owed {
                        left: body.size,
                        seen: blake3::Hasher::new(),
                        blake3: body.blake3.clone(),
                    }),
                })
            }
        }
    }

    /// The next chunk; `None` at the end, which comes only after all that was put has been read back.
    ///
    /// # Errors
    /// When the content cannot be read back, or is another one.
    pub async fn read(&mut self) -> Result<Option<Bytes>, BlobError> {
        let (decoder, left) = match self {
            BodyReader::Blob { reader, owed } => {
                let chunk = reader.read().await?;
                if !owed.note(chunk.as_ref()) {
                    return Err(BlobError::Unavailable(
                        "the blob is not what was put there".into(),
                    ));
                }
                return Ok(chunk);
            }
            BodyReader::Small { frame, size } => {
                let content = frame.take().map(|frame| decompress(&frame, *size));
                return Ok(content.transpose()?.filter(|content| !content.is_empty()));
            }
            BodyReader::Inline { decoder, left } => (decoder, left),
        };
        let mut chunk = vec![0; usize::try_from(*left).unwrap_or(CHUNK).clamp(1, CHUNK)];
        let length = decoder
            .read(&mut chunk)
            .map_err(|error| BlobError::Unavailable(error.to_string()))?;
        let fits = *left >= length as u64 && (length > 0 || *left == 0);
        if !fits {
            return Err(BlobError::Unavailable(
                "body is not as long as it says".into(),
            ));
        }
        *left -= length as u64;
        chunk.truncate(length);
        Ok((length > 0).then(|| Bytes::from(chunk)))
    }
}
