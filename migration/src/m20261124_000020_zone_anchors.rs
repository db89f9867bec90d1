//! `camera_zones`: what of a detection must lie in a zone, which version of a zone it is, and names
//! that are unique among the zones of a camera.

use sea_orm_migration::{
    prelude::*,
    schema::{double_null, integer, string},
};

use crate::dialect::{check, per_backend};

/// The last one first, as they are dropped.
const COLUMNS: [&str; 3] = ["version_id", "min_overlap", "anchor"];

const UNIQUE_NAME: &str = "idx_camera_zones_camera_id_name_unique";

/// Other writers may have given a camera two zones of one name. The oldest keeps it, the others get
/// their id added, cut so that the name stays within its 255 characters.
const RENAME: &[&str] = &["UPDATE camera_zones \
    SET name = substr(name, 1, 188) || ' (' || substr(id, 1, 64) || ')' \
    WHERE EXISTS (SELECT 1 FROM camera_zones AS older \
        WHERE older.camera_id = camera_zones.camera_id AND older.name = camera_zones.name \
        AND (older.created_at, older.id) < (camera_zones.created_at, camera_zones.id))"];

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let anchor = string("anchor")
            .default("center")
            .check(check(
                "ck_camera_zones_anchor",
                "anchor IN ('center', 'foot', 'overlap')",
            ))
            .take();
        let min_overlap = double_null("min_overlap")
            .check(check(
                "ck_camera_zones_min_overlap_range",
                "min_overlap > 0.0 AND min_overlap <= 1.0",
            ))
            .take();
        let version = integer("version_id").default(1).take();
        // SQLite adds one column at a time.
        for column in [anchor, min_overlap, version] {
            let zones = Table::alter()
                .table("camera_zones")
                .add_column(column)
                .take();
            manager.alter_table(zones).await?;
        }
        per_backend(manager, RENAME, RENAME).await?;
        let unique = Index::create()
            .name(UNIQUE_NAME)
            .table("camera_zones")
            .col("camera_id")
            .col("name")
            .unique()
            .take();
        manager.create_index(unique).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut unique = Index::drop();
        unique.name(UNIQUE_NAME).table("camera_zones");
        manager.drop_index(unique).await?;
        for column in COLUMNS {
            let zones = Table::alter()
                .table("camera_zones")
                .drop_column(column)
                .take();
            manager.alter_table(zones).await?;
        }
        Ok(())
    }
}
