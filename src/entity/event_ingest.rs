//! Table `event_ingests`: idempotency keys of ingested events.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_ingests")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub event_id: i64,
    pub camera_id: String,
    pub batch_id: Option<String>,
    /// Idempotency key chosen by the producer.
    pub request_id: Option<String>,
    /// Hash of the request; a repeat must have the same content.
    pub fingerprint: Vec<u8>,
    /// Encoded outcomes of the first answer.
    pub outcomes: Option<Vec<u8>>,
    pub created_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
