//! The content of a mail coming in: by DATA up to the final dot, by BDAT (RFC 3030) octet for octet, or thrown away when nobody
//! wants it; and what becomes of the mail then.

use bytes::Buf;
use hikyaku_mail::reply::{Rejection, Reply};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};

use crate::backend::{Abort, Backend, End, Phase, Transaction};
use crate::command::Chunk;
use crate::content::{Event, Scanner};
use crate::pace::Pace;
use crate::server::{Conversation, Flow, Held, Outcome};
use crate::session::Chunked;
use crate::wire::BLOCK_BYTES;

impl<S, B> Conversation<'_, S, B>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    B: Backend,
{
    /// DATA: 354, the content, and what became of it.
    pub(super) async fn data(&mut self, mut transaction: Held<B>) -> Flow<()> {
        if let Err(rejection) = transaction.data().await {
            self.session.data_refused();
            let rejection = transaction.about(rejection);
            transaction.abort(Abort::Refused);
            return self.reject(Phase::Data, rejection).await;
        }
        let received = match self
            .push(&Reply::bare(354, "end data with <CR><LF>.<CR><LF>"))
            .await
        {
            Ok(()) => self.content(&mut transaction).await,
            Err(outcome) => Err(outcome),
        };
        self.settle(transaction, received).await
    }

    /// What becomes of a mail whose content is over.
    async fn settle(&mut self, transaction: Held<B>, received: Flow<Received>) -> Flow<()> {
        let rejection = match received {
            Ok(Received::Whole) => match transaction.finish().await {
                Ok(reply) => {
                    self.session.delivered();
                    return self.push(&reply).await;
                }
                Err(rejection) => rejection,
            },
            Ok(Received::Refused(rejection)) => {
                let rejection = transaction.about(rejection);
                transaction.abort(Abort::Refused);
                rejection
            }
            Ok(Received::RefusedForGood(rejection)) => {
                let rejection = transaction.about(rejection);
                transaction.abort(Abort::Refused);
                return self.refuse_and_close(Phase::Data, rejection);
            }
            Err(outcome) => {
                transaction.abort(Abort::Disconnected);
                return Err(outcome);
            }
        };
        self.reject(Phase::Data, rejection).await
    }

    /// BDAT: a chunk of the content, and what became of it.
    pub(super) async fn chunk(
        &mut self,
        chunk: Chunk,
        mut content: Box<Chunked<Held<B>>>,
    ) -> Flow<()> {
        if content.begins()
            && let Err(rejection) = content.transaction.data().await
        {
            let rejection = content.transaction.about(rejection);
            content.transaction.abort(Abort::Refused);
            return self.discard(chunk, Phase::Data, rejection).await;
        }
        let received = self.counted(chunk, &mut content).await;
        let is_whole = chunk.last && matches!(received, Ok(Received::Whole));
        if is_whole && content.scanner.has_normalized() {
            let what = "bare LF in chunks, written as CRLF";
            self.surroundings.backend.tolerated(self.peer, what, "");
        }
        if chunk.last || !matches!(received, Ok(Received::Whole)) {
            return self.settle(content.transaction, received).await;
        }
        self.session.continues(content);
        let text = format!("{} octets received", chunk.size);
        self.push(&Reply::new(250, (2, 0, 0), text)).await
    }

    /// Receives the octets of one chunk and feeds them to the transaction.
    async fn counted(&mut self, chunk: Chunk, content: &mut Chunked<Held<B>>) -> Flow<Received> {
        let Chunked {
            transaction,
            scanner,
            pace,
            ..
        } = content;
        let (mut left, mut refused) = (chunk.size, None);
        loop {
            let here = usize::try_from(left).map_or(self.wire.input.len(), |left| {
                left.min(self.wire.input.len())
            });
            let (mut part, _) = self.wire.input.split_at(here);
            while let Event::Content(run) = scanner.next(&mut part) {
                if refused.is_none() {
                    refused = transaction.chunk(run).await.err();
                }
            }
            self.wire.input.advance(here);
            left -= here as u64;
            if left == 0 {
                break;
            }
            self.receive(pace).await?;
        }
        self.wire.shrink();
        let end = if chunk.last { scanner.end() } else { b"" };
        if !end.is_empty() && refused.is_none() {
            refused = transaction.chunk(end).await.err();
        }
        Ok(Received::new(scanner, refused, true))
    }

    /// Receives the octets of a chunk that nobody wants and answers. One larger than any message is answered at once, and
    /// the session ends after as many octets as the largest message has.
    pub(super) async fn discard(
        &mut self,
        chunk: Chunk,
        phase: Phase<'_>,
        rejection: Rejection,
    ) -> Flow<()> {
        let options = self.surroundings.options;
        let endless = chunk.size > options.content_bytes_max;
        if endless {
            self.surroundings
                .backend
                .rejected(self.peer, phase, &rejection);
            self.push(&rejection.reply).await?;
        }
        let (mut left, mut pace) = (
            chunk.size.min(options.content_bytes_max),
            Pace::new(options),
        );
        loop {
            let here = usize::try_from(left).map_or(self.wire.input.len(), |left| {
                left.min(self.wire.input.len())
            });
            self.wire.input.advance(here);
            left -= here as u64;
            if left == 0 {
                break;
            }
            self.receive(&mut pace).await?;
        }
        self.wire.shrink();
        if endless {
            return Err(Outcome::Ended(End::Refused));
        }
        self.reject(phase, rejection).await
    }

    /// Waits for more of a content. Before that, all replies are on their way.
    async fn receive(&mut self, pace: &mut Pace) -> Flow<()> {
        self.flush().await?;
        let (began, patience) = (Instant::now(), pace.patience());
        match timeout(patience, self.wire.fill(BLOCK_BYTES)).await {
            Ok(Ok(0) | Err(_)) => Err(Outcome::Ended(End::Disconnected)),
            Ok(Ok(count)) => {
                pace.count(began.elapsed(), count);
                Ok(())
            }
            Err(_) => self.timed_out(Phase::Data).await,
        }
    }

    /// Receives the content up to its end and feeds it to the transaction.
    async fn content(&mut self, transaction: &mut B::Transaction) -> Flow<Received> {
        self.flush().await?;
        let options = self.surroundings.options;
        let (mut scanner, mut pace, mut refused) =
            (Scanner::new(options), Pace::new(options), None);
        loop {
            let mut rest = &self.wire.input[..];
            let ended = loop {
                match scanner.next(&mut rest) {
                    Event::Content(run) if refused.is_none() => {
                        refused = transaction.chunk(run).await.err()
                    }
                    Event::Content(_) => {}
                    Event::More => break None,
                    Event::End => break Some(true),
                    Event::Endless => break Some(false),
                }
            };
            let taken = self.wire.input.len() - rest.len();
            self.wire.input.advance(taken);
            if let Some(whole) = ended {
                // the buffer for blocks is given back between messages
                self.wire.shrink();
                return Ok(Received::new(&scanner, refused, whole));
            }
            self.receive(&mut pace).await?;
        }
    }
}

/// What came of the content.
enum Received {
    /// All of it has been handed to the transaction.
    Whole,
    /// It ended and is refused.
    Refused(Rejection),
    /// It is refused and nothing after it can be trusted.
    RefusedForGood(Rejection),
}

impl Received {
    /// `refused` is what the transaction said; `whole` is false if the end of the content was not seen.
    fn new(scanner: &Scanner, refused: Option<Rejection>, whole: bool) -> Received {
        match (scanner.fault(), refused) {
            (Some(fault), _) if fault.closes() || !whole => {
                Received::RefusedForGood(fault.reply().into())
            }
            (Some(fault), _) => Received::Refused(fault.reply().into()),
            (None, Some(rejection)) => Received::Refused(rejection),
            (None, None) => Received::Whole,
        }
    }
}
