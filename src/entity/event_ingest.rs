//! `event_ingests`: which requests an event came from, so that a repeat is known.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "event_ingests")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub event_id: i64,
    pub camera_id: String,
    pub batch_id: Option<String>,
    /// The producer's own id of the request.
    pub request_id: Option<String>,
    /// A hash of the request: a repeat must say the same.
    pub fingerprint: Vec<u8>,
    /// What the first answer said, encoded.
    pub outcomes: Option<Vec<u8>>,
    pub created_at: DateTimeUtc,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self {
            created_at: Set(super::now()),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}
