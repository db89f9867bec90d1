//! Pages of lists by keyset: newest, oldest, highest or lowest first, with the id as tie-breaker.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DbBackend, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect,
    Select, StreamTrait, Value,
    sea_query::{Expr, ExprTrait, SimpleExpr},
};

use self::{builder::PageBuilder, token::Token};
use crate::error::{Error, Result};

mod builder;
pub mod sorted;
mod token;

const DEFAULT_ROWS: u64 = 50;
const MAX_ROWS: u64 = 1000;

/// Requested page of a list.
#[derive(Debug)]
pub struct Page {
    size: u64,
    list: u64,
    after: Option<Token>,
}

impl Page {
    /// Parses a List request. `list` is the name of the list, `filter` the filter of the request.
    pub fn parse(size: i32, token: &str, list: &str, filter: &impl Message) -> Result<Self> {
        let size = match u64::try_from(size) {
            Err(_) => return Err(Error::invalid("page_size", "must not be negative")),
            Ok(0) => DEFAULT_ROWS,
            Ok(size) => Ord::min(size, MAX_ROWS),
        };
        let list = fingerprint(list, filter);
        let after = if token.is_empty() { None } else { Some(Token::parse(token, list)?) };
        Ok(Self { size, list, after })
    }

    /// Reads the page of `select`, newest first by time and id. `key` returns both values of a row.
    ///
    /// Returns the messages and the token of the next page, empty on the last page.
    pub async fn newest_first<E, C, I, M>(
        &self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        (time_column, id_column): (C, C),
        key: impl Fn(&E::Model) -> (DateTime<Utc>, I),
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        C: ColumnTrait,
        I: ToString + FromStr + Into<Value>,
        M: Message + From<E::Model>,
    {
        let mut select = select;
        if let Some(after) = &self.after {
            let (time, id) = after.key::<I>()?;
            let columns = Expr::tuple([Expr::col(time_column.as_column_ref()), Expr::col(id_column.as_column_ref())]);
            select = select.filter(columns.lt(Expr::tuple([Expr::val(time), Expr::val(id)])));
        }
        let select = select.order_by(time_column, Order::Desc).order_by(id_column, Order::Desc);
        let key = |row: &E::Model| {
            let (time, id) = key(row);
            self.token(time.timestamp_micros(), &id)
        };
        self.fetch(db, select, key).await
    }

    /// Reads the rows of the page of `select`, oldest first by time and id, plus one more row if
    /// present. [`Self::paginate`] must follow.
    pub async fn oldest_first<E, C, I>(
        &self,
        db: &impl ConnectionTrait,
        select: Select<E>,
        (time_column, id_column): (C, C),
    ) -> Result<Vec<E::Model>>
    where
        E: EntityTrait,
        C: ColumnTrait,
        I: FromStr + Into<Value>,
    {
        let mut select = select;
        if let Some(after) = &self.after {
            let (time, id) = after.key::<I>()?;
            let columns = Expr::tuple([Expr::col(time_column.as_column_ref()), Expr::col(id_column.as_column_ref())]);
            select = select.filter(columns.gt(Expr::tuple([Expr::val(time), Expr::val(id)])));
        }
        Ok(select
            .order_by(time_column, Order::Asc)
            .order_by(id_column, Order::Asc)
            .limit(self.size + 1)
            .all(db)
            .await?)
    }

    /// Reads the page of `select`, highest rank first. Rows of equal rank are sorted by the bytes
    /// of their ids, regardless of the collation. Otherwise equal to [`Self::newest_first`].
    pub async fn highest_first<E, C, M>(
        &self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        (rank_column, id_column): (C, C),
        key: impl Fn(&E::Model) -> (i64, String),
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        C: ColumnTrait,
        M: Message + From<E::Model>,
    {
        let mut select = select;
        let rank = || Expr::col(rank_column.as_column_ref());
        let id = collate_bytewise(Expr::col(id_column.as_column_ref()), ConnectionTrait::get_database_backend(db));
        if let Some(after) = &self.after {
            let last = after.id::<String>()?;
            let same_rank = Condition::all().add(rank().eq(after.position)).add(id.clone().gt(last));
            let rest = Condition::any().add(rank().lt(after.position)).add(same_rank);
            select = select.filter(rest);
        }
        let select = select.order_by(rank(), Order::Desc).order_by(id, Order::Asc);
        let key = |row: &E::Model| {
            let (rank, id) = key(row);
            self.token(rank, &id)
        };
        self.fetch(db, select, key).await
    }

    /// Reads the page of `select`, lowest number first; numbers must be unique. Otherwise equal to
    /// [`Self::newest_first`].
    pub async fn lowest_first<E, M>(
        &self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        column: impl ColumnTrait,
        key: impl Fn(&E::Model) -> i64,
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        M: Message + From<E::Model>,
    {
        let mut select = select;
        if let Some(after) = &self.after {
            select = select.filter(column.gt(after.position));
        }
        let key = |row: &E::Model| self.token(key(row), &"");
        self.fetch(db, select.order_by_asc(column), key).await
    }

    /// Reads the rows of the page of `select`, sorted by the bytes of their ids regardless of the
    /// collation, plus one more row if present. [`Self::paginate`] must follow, with any position.
    pub async fn by_id<E: EntityTrait>(
        &self,
        db: &impl ConnectionTrait,
        select: Select<E>,
        id_column: impl ColumnTrait,
    ) -> Result<Vec<E::Model>> {
        let id = collate_bytewise(Expr::col(id_column.as_column_ref()), db.get_database_backend());
        let mut select = select;
        if let Some(after) = &self.after {
            select = select.filter(id.clone().gt(after.id::<String>()?));
        }
        Ok(select.order_by(id, Order::Asc).limit(self.size + 1).all(db).await?)
    }

    /// Returns true if a row with this id belongs to this page or a later page of a list by id.
    pub fn reaches(&self, id: &str) -> bool {
        self.after.as_ref().is_none_or(|after| *after.id < *id)
    }

    /// Reads rows one by one until the page is full, so that at most one page is in memory.
    async fn fetch<E, M>(
        &self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        key: impl Fn(&E::Model) -> Token,
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        M: Message + From<E::Model>,
    {
        let mut builder = PageBuilder::new(self.size);
        builder.fetch(db, select, key).await?;
        Ok(builder.finish())
    }

    /// Converts the rows that fit on the page by `convert`, and returns the token of the next page.
    /// `key` returns the position and id of a row.
    pub fn paginate<R, I: ToString, M: Message>(
        &self,
        rows: Vec<R>,
        key: impl Fn(&R) -> (i64, I),
        mut convert: impl FnMut(R) -> M,
    ) -> (Vec<M>, String) {
        let mut builder = PageBuilder::new(self.size);
        for row in rows {
            let (position, id) = key(&row);
            if !builder.add(self.token(position, &id), convert(row)) {
                break;
            }
        }
        builder.finish()
    }

    fn token(&self, position: i64, id: &impl ToString) -> Token {
        Token { list: self.list, position, id: id.to_string(), key: None }
    }
}

/// Compares a text by its bytes, as SQLite does by default.
pub fn collate_bytewise(column: SimpleExpr, backend: DbBackend) -> SimpleExpr {
    if backend == DbBackend::Postgres { Expr::cust_with_exprs(r#"$1 COLLATE "C""#, [column]) } else { column }
}

/// FNV-1a hash of the list name and filter: stable across versions, unlike the hashes of the
/// standard library.
fn fingerprint(list: &str, filter: &impl Message) -> u64 {
    let bytes = list.bytes().chain([0]).chain(filter.encode_to_vec());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;
    use crate::pb;

    #[test]
    fn a_token_is_good_for_its_list_and_filter_only() {
        let filter = pb::CameraFilter { show_deleted: true, ..Default::default() };
        let token = Token { list: fingerprint("cameras", &filter), position: 1, id: "a".into(), key: None };
        let token = BASE64_URL_SAFE_NO_PAD.encode(token.encode_to_vec());
        assert!(Page::parse(0, &token, "cameras", &filter).is_ok());
        assert!(Page::parse(0, &token, "alerts", &filter).is_err());
        assert!(Page::parse(0, &token, "cameras", &pb::CameraFilter::default()).is_err());
        for token in ["x", "%%%", "AAAA", &token[1..]] {
            assert!(Page::parse(0, token, "cameras", &filter).is_err(), "{token}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let size = |size| Page::parse(size, "", "cameras", &pb::CameraFilter::default()).map(|page| page.size);
        assert_eq!(size(0).unwrap(), 50);
        assert_eq!(size(7).unwrap(), 7);
        assert_eq!(size(i32::MAX).unwrap(), 1000);
        assert!(size(-1).is_err());
    }
}
