//! Page tokens: the position of the last row of a page.

use std::str::FromStr;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use prost::{Message, Oneof};
use sea_orm::Value;

use crate::{
    error::{Error, Result},
    rpc::time,
};

/// Content of a page token. Tokens are opaque to clients, stay valid across upgrades, and are
/// understood by every process.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Token {
    /// Hash of the list and its filter: a token is valid only for the same list and filter.
    #[prost(fixed64, tag = "1")]
    pub(super) list: u64,
    /// Time of the last row, in microseconds since 1970, or the rank of the last row.
    #[prost(int64, tag = "2")]
    pub(super) position: i64,
    /// Id of the last row.
    #[prost(string, tag = "3")]
    pub(super) id: String,
    /// Sort value of the last row; absent if the row has none.
    #[prost(oneof = "SortValue", tags = "4, 5, 6")]
    pub(super) key: Option<SortValue>,
}

/// Type of a sort value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    Number,
    Text,
    Time,
}

/// Sort value of a row.
#[derive(Clone, PartialEq, Oneof)]
pub enum SortValue {
    #[prost(int64, tag = "4")]
    Number(i64),
    #[prost(string, tag = "5")]
    Text(String),
    /// Time in microseconds since 1970.
    #[prost(int64, tag = "6")]
    Time(i64),
}

impl SortValue {
    /// Creates the sort value of a time.
    pub fn time(time: DateTime<Utc>) -> Self {
        Self::Time(time.timestamp_micros())
    }

    /// Converts to the database value that is compared with the column.
    pub(super) fn value(&self, kind: ValueKind) -> Result<Value> {
        match self {
            Self::Number(number) if kind == ValueKind::Number => Ok((*number).into()),
            Self::Text(text) if kind == ValueKind::Text && !text.contains('\0') => Ok(text.into()),
            Self::Time(micros) if kind == ValueKind::Time => {
                Ok(time::from_micros(*micros).ok_or_else(invalid_token)?.into())
            }
            Self::Number(_) | Self::Text(_) | Self::Time(_) => Err(invalid_token()),
        }
    }
}

impl Token {
    /// Parses a token, which must belong to this list and filter.
    pub(super) fn parse(text: &str, list: u64) -> Result<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let token = bytes.and_then(|bytes| Self::decode(bytes.as_slice()).ok()).ok_or_else(invalid_token)?;
        if token.list != list {
            return Err(Error::invalid("page_token", "belongs to another list or filter"));
        }
        Ok(token)
    }

    /// Returns the time and id of the last row.
    pub(super) fn key<I: FromStr>(&self) -> Result<(DateTime<Utc>, I)> {
        let time = time::from_micros(self.position);
        Ok((time.ok_or_else(invalid_token)?, self.id()?))
    }

    /// Returns the id of the last row.
    pub(super) fn id<I: FromStr>(&self) -> Result<I> {
        let id = Some(&self.id).filter(|id| !id.contains('\0'));
        id.and_then(|id| id.parse().ok()).ok_or_else(invalid_token)
    }
}

/// Error for a text that is not a page token.
pub(super) fn invalid_token() -> Error {
    Error::invalid("page_token", "is not a token of this server")
}
