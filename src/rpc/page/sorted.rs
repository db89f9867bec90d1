//! Pages of lists sorted by an optional value, a time and an id, by keyset.

use chrono::{DateTime, Utc};
use prost::Message;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, Order, QueryFilter, QueryOrder, Select, StreamTrait, Value,
    sea_query::{Expr, ExprTrait, SimpleExpr},
};
use uuid::Uuid;

pub use super::token::{SortValue, ValueKind};
use super::{
    Page,
    builder::PageBuilder,
    token::{Token, invalid_token},
};
use crate::error::Result;

/// Sort order of a list.
#[derive(Debug, Clone)]
pub struct Sort<C> {
    /// Primary sort key; absent if the list is sorted by time alone.
    pub by: Option<SortKey>,
    /// Time and id columns that sort rows with an equal primary key.
    pub then_by: (C, C),
    /// Direction of the time and id columns.
    pub then_order: Order,
}

/// Primary sort key of a list: value, type and direction.
#[derive(Debug, Clone)]
pub struct SortKey {
    /// Column or SQL expression of the value.
    pub value: SimpleExpr,
    /// Type of the value.
    pub kind: ValueKind,
    /// True if the value may be NULL. Rows with NULL come last.
    pub may_be_absent: bool,
    /// Direction of the sort.
    pub order: Order,
}

impl Page {
    /// Reads the page of `select` in this order. `key` returns the sort value, the time and the id
    /// of a row.
    ///
    /// Returns the messages and the token of the next page, empty on the last page. Rows with and
    /// without a value are read by separate queries, so that both can use an index. If both exist,
    /// `db` must be a transaction with a consistent snapshot.
    pub async fn sorted<E, M>(
        &self,
        db: &(impl ConnectionTrait + StreamTrait),
        select: Select<E>,
        sort: &Sort<E::Column>,
        key: impl Fn(&E::Model) -> (Option<SortValue>, DateTime<Utc>, Uuid),
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        M: Message + From<E::Model>,
    {
        let last = self.after.as_ref();
        let position = last.map(Token::key::<Uuid>).transpose()?;
        let value = last.and_then(|last| last.key.as_ref());
        let token = |row: &E::Model| {
            let (value, time, id) = key(row);
            Token { key: value, ..self.token(time.timestamp_micros(), &id) }
        };
        let mut builder = PageBuilder::new(self.size);
        let mut select = select;
        if let Some(by) = &sort.by {
            let value = value.map(|key| key.value(by.kind)).transpose()?;
            if position.is_some() && value.is_none() && !by.may_be_absent {
                return Err(invalid_token());
            }
            if position.is_none() || value.is_some() {
                let after = value.zip(position).map(|(value, position)| sort.after_row(by, value, position));
                let rows_with_value = sort.rows_with_value(by, select.clone(), after);
                builder.fetch(db, rows_with_value, &token).await?;
            }
            select = select.filter(by.value.clone().is_null());
        }
        let has_rows_without_value = sort.by.as_ref().is_none_or(|by| by.may_be_absent);
        if has_rows_without_value {
            // Rows with a value ended on this page or an earlier page.
            if let Some(position) = position.filter(|_| value.is_none()) {
                select = select.filter(sort.after_position(position));
            }
            builder.fetch(db, sort.order_ties(select), &token).await?;
        }
        Ok(builder.finish())
    }
}

impl<C: ColumnTrait> Sort<C> {
    /// Selects the rows with a value, after the given position.
    fn rows_with_value<E: EntityTrait>(&self, by: &SortKey, select: Select<E>, after: Option<Condition>) -> Select<E> {
        let mut select = select;
        if by.may_be_absent {
            select = select.filter(by.value.clone().is_not_null());
        }
        if let Some(after) = after {
            select = select.filter(after);
        }
        self.order_ties(select.order_by(by.value.clone(), by.order.clone()))
    }

    fn order_ties<E: EntityTrait>(&self, select: Select<E>) -> Select<E> {
        let (time, id) = self.then_by;
        let select = select.order_by(time, self.then_order.clone());
        select.order_by(id, self.then_order.clone())
    }

    /// Matches rows after the given value, time and id. The redundant first condition enables an
    /// index search.
    fn after_row(&self, by: &SortKey, value: Value, position: (DateTime<Utc>, Uuid)) -> Condition {
        let (column, value) = (|| by.value.clone(), Expr::val(value));
        let (not_before, after) = if by.order == Order::Desc {
            (column().lte(value.clone()), column().lt(value.clone()))
        } else {
            (column().gte(value.clone()), column().gt(value.clone()))
        };
        let equal = Condition::all().add(column().eq(value)).add(self.after_position(position));
        Condition::all().add(not_before).add(Condition::any().add(after).add(equal))
    }

    /// Matches rows after the given time and id, among rows with an equal value.
    fn after_position(&self, (time, id): (DateTime<Utc>, Uuid)) -> SimpleExpr {
        let (time_column, id_column) = self.then_by;
        let columns = Expr::tuple([Expr::col(time_column.as_column_ref()), Expr::col(id_column.as_column_ref())]);
        let position = Expr::tuple([Expr::val(time), Expr::val(id)]);
        if self.then_order == Order::Desc { columns.lt(position) } else { columns.gt(position) }
    }
}
