//! Blobs in memory: what a committed blob is to a simulation that crashes its nodes but not this store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hikyaku_mail::id::MessageId;

use crate::{BlobError, BlobReader, BlobWriter, Blobs};

type Shelf = Arc<Mutex<BTreeMap<MessageId, Bytes>>>;

fn lock(shelf: &Shelf) -> MutexGuard<'_, BTreeMap<MessageId, Bytes>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blobs shared by all clones.
#[derive(Clone, Default)]
pub struct MemoryBlobs {
    shelf: Shelf,
}

impl MemoryBlobs {
    /// An empty store.
    pub fn new() -> MemoryBlobs {
        MemoryBlobs::default()
    }
}

impl Blobs for MemoryBlobs {
    fn create(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, BlobError>> {
        let writer = MemoryWriter {
            shelf: self.shelf.clone(),
            id,
            content: BytesMut::new(),
        };
        Box::pin(async move { Ok(Box::new(writer) as Box<dyn BlobWriter>) })
    }

    fn open(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobReader>, BlobError>> {
        let content = lock(&self.shelf).get(&id).cloned();
        Box::pin(async move {
            let content = content.ok_or(BlobError::Missing)?;
            Ok(Box::new(MemoryReader { content }) as Box<dyn BlobReader>)
        })
    }

    fn delete(&self, id: MessageId) -> BoxFuture<'_, Result<(), BlobError>> {
        lock(&self.shelf).remove(&id);
        Box::pin(async { Ok(()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<MessageId>, BlobError>> {
        let ids = lock(&self.shelf).keys().copied().collect();
        Box::pin(async move { Ok(ids) })
    }
}

struct MemoryWriter {
    shelf: Shelf,
    id: MessageId,
    content: BytesMut,
}

impl BlobWriter for MemoryWriter {
    fn write(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), BlobError>> {
        self.content.extend_from_slice(&chunk);
        Box::pin(async { Ok(()) })
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<(), BlobError>> {
        lock(&self.shelf).insert(self.id, self.content.freeze());
        Box::pin(async { Ok(()) })
    }
}

struct MemoryReader {
    content: Bytes,
}

impl BlobReader for MemoryReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BlobError>> {
        let length = self.content.len().min(64 * 1024);
        let chunk = self.content.split_to(length);
        Box::pin(async move { Ok((length > 0).then_some(chunk)) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::MemoryBlobs;
    use crate::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        let blobs = MemoryBlobs::new();
        contract::all(|| Arc::new(blobs.clone())).await;
    }
}
