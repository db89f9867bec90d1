//! Builder of a page: collects rows up to a maximum number of rows and bytes.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::TryStreamExt;
use prost::Message;
use sea_orm::{ConnectionTrait, EntityTrait, QuerySelect, Select, StreamTrait};

use super::token::Token;
use crate::error::Result;

/// Maximum size of a page in bytes, exceeded only by a single larger row. Most clients accept
/// messages of 4 MiB.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Page of messages that is being filled row by row.
pub(super) struct PageBuilder<M> {
    max_rows: u64,
    messages: Vec<M>,
    bytes: usize,
    /// Token of the last message.
    last: Option<Token>,
    /// True if a further row exists that does not fit.
    is_full: bool,
}

impl<M: Message> PageBuilder<M> {
    pub(super) fn new(max_rows: u64) -> Self {
        Self { max_rows, messages: Vec::new(), bytes: 0, last: None, is_full: false }
    }

    /// Adds a row. Returns false if the page is full; the first row always fits.
    pub(super) fn add(&mut self, position: Token, message: M) -> bool {
        self.bytes += message.encoded_len();
        let count = self.messages.len() as u64;
        if count > 0 && (count == self.max_rows || self.bytes > MAX_PAGE_BYTES) {
            self.is_full = true;
            return false;
        }
        self.messages.push(message);
        self.last = Some(position);
        true
    }

    /// Reads rows until the page is full or no rows are left.
    pub(super) async fn fetch<E>(
        &mut self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        key: impl Fn(&E::Model) -> Token,
    ) -> Result<()>
    where
        E: EntityTrait,
        M: From<E::Model>,
    {
        let remaining = (self.max_rows + 1).saturating_sub(self.messages.len() as u64);
        if self.is_full || remaining == 0 {
            return Ok(());
        }
        let mut rows = select.limit(remaining).stream(db).await?;
        while let Some(row) = rows.try_next().await? {
            if !self.add(key(&row), row.into()) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> (Vec<M>, String) {
        let last = self.last.filter(|_| self.is_full);
        let token = last.map(|last| BASE64_URL_SAFE_NO_PAD.encode(last.encode_to_vec()));
        (self.messages, token.unwrap_or_default())
    }
}
