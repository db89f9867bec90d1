//! Table `reid_embeddings`: embeddings for the re-identification of persons.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "reid_embeddings")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub detection_id: i64,
    /// JSON array of 512 numbers.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub embedding: Option<Json>,
    /// SHA-256 of the embedding, in hexadecimal digits.
    pub embedding_hash: Option<String>,
    pub created_at: DateTimeUtc,
    #[sea_orm(belongs_to, from = "detection_id", to = "id", on_delete = "Cascade")]
    pub detection: BelongsTo<super::detection::Entity>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { created_at: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}
