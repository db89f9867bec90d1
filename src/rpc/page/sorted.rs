//! Pages of lists sorted by an optional value, a time and an id, by keyset.

use chrono::{DateTime, Utc};
use prost::{Message, Oneof};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, Order, QueryFilter, QueryOrder, Select,
    StreamTrait, Value,
    sea_query::{Expr, ExprTrait, SimpleExpr},
};
use uuid::Uuid;

use super::{Page, Token, filling::Filling, foreign};
use crate::{error::Result, rpc::time};

/// Sort order of a list.
#[derive(Debug, Clone)]
pub struct Sort<C> {
    /// Primary sort key; absent if the list is sorted by time alone.
    pub by: Option<By>,
    /// Time and id columns that sort rows with an equal primary key.
    pub then_by: (C, C),
    /// Direction of the time and id columns.
    pub then_order: Order,
}

/// Primary sort key.
#[derive(Debug, Clone)]
pub struct By {
    /// Column or expression.
    pub value: SimpleExpr,
    /// Type of the value.
    pub kind: Kind,
    /// True if the value may be NULL. Rows with NULL come last.
    pub may_be_absent: bool,
    /// Direction of the sort.
    pub order: Order,
}

/// Type of a sort value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Number,
    Text,
    Time,
}

/// Sort value of a row.
#[derive(Clone, PartialEq, Oneof)]
pub enum Key {
    #[prost(int64, tag = "4")]
    Number(i64),
    #[prost(string, tag = "5")]
    Text(String),
    /// Microseconds since 1970.
    #[prost(int64, tag = "6")]
    Time(i64),
}

impl Key {
    /// Creates the sort value of a time.
    pub fn time(time: DateTime<Utc>) -> Self {
        Self::Time(time.timestamp_micros())
    }

    /// Converts to the database value that is compared with the column.
    fn value(&self, kind: Kind) -> Result<Value> {
        match self {
            Self::Number(number) if kind == Kind::Number => Ok((*number).into()),
            Self::Text(text) if kind == Kind::Text && !text.contains('\0') => Ok(text.into()),
            Self::Time(micros) if kind == Kind::Time => {
                Ok(time::from_micros(*micros).ok_or_else(foreign)?.into())
            }
            Self::Number(_) | Self::Text(_) | Self::Time(_) => Err(foreign()),
        }
    }
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
        key: impl Fn(&E::Model) -> (Option<Key>, DateTime<Utc>, Uuid),
    ) -> Result<(Vec<M>, String)>
    where
        E: EntityTrait,
        M: Message + From<E::Model>,
    {
        let last = self.after.as_ref();
        let place = last.map(Token::key::<Uuid>).transpose()?;
        let value = last.and_then(|last| last.key.as_ref());
        let token = |row: &E::Model| {
            let (value, time, id) = key(row);
            Token {
                key: value,
                ..self.token(time.timestamp_micros(), &id)
            }
        };
        let mut filling = Filling::new(self);
        let mut select = select;
        if let Some(by) = &sort.by {
            let value = value.map(|key| key.value(by.kind)).transpose()?;
            if place.is_some() && value.is_none() && !by.may_be_absent {
                return Err(foreign());
            }
            if place.is_none() || value.is_some() {
                let after = value.zip(place);
                let after = after.map(|(value, place)| sort.after(by, value, place));
                let valued = sort.valued(by, select.clone(), after);
                filling.read(db, valued, &token).await?;
            }
            select = select.filter(by.value.clone().is_null());
        }
        let has_others = sort.by.as_ref().is_none_or(|by| by.may_be_absent);
        if has_others {
            // Rows with a value ended on this page or an earlier page.
            if let Some(place) = place.filter(|_| value.is_none()) {
                select = select.filter(sort.after_place(place));
            }
            filling.read(db, sort.then(select), &token).await?;
        }
        Ok(filling.done())
    }
}

impl<C: ColumnTrait> Sort<C> {
    /// Selects the rows with a value, after the given position.
    fn valued<E: EntityTrait>(
        &self,
        by: &By,
        select: Select<E>,
        after: Option<Condition>,
    ) -> Select<E> {
        let mut select = select;
        if by.may_be_absent {
            select = select.filter(by.value.clone().is_not_null());
        }
        if let Some(after) = after {
            select = select.filter(after);
        }
        self.then(select.order_by(by.value.clone(), by.order.clone()))
    }

    fn then<E: EntityTrait>(&self, select: Select<E>) -> Select<E> {
        let (time, id) = self.then_by;
        let select = select.order_by(time, self.then_order.clone());
        select.order_by(id, self.then_order.clone())
    }

    /// Matches rows after the given value, time and id. The redundant first condition enables an
    /// index search.
    fn after(&self, by: &By, value: Value, place: (DateTime<Utc>, Uuid)) -> Condition {
        let (column, value) = (|| by.value.clone(), Expr::val(value));
        let (not_before, after) = if by.order == Order::Desc {
            (column().lte(value.clone()), column().lt(value.clone()))
        } else {
            (column().gte(value.clone()), column().gt(value.clone()))
        };
        let equal = Condition::all()
            .add(column().eq(value))
            .add(self.after_place(place));
        Condition::all()
            .add(not_before)
            .add(Condition::any().add(after).add(equal))
    }

    /// Matches rows after the given time and id, among rows with an equal value.
    fn after_place(&self, (time, id): (DateTime<Utc>, Uuid)) -> SimpleExpr {
        let (time_column, id_column) = self.then_by;
        let columns = Expr::tuple([
            Expr::col(time_column.as_column_ref()),
            Expr::col(id_column.as_column_ref()),
        ]);
        let place = Expr::tuple([Expr::val(time), Expr::val(id)]);
        if self.then_order == Order::Desc {
            columns.lt(place)
        } else {
            columns.gt(place)
        }
    }
}
