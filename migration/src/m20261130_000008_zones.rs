//! `camera_zones`: named areas of a camera's picture.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{boolean, double_null, integer, json_binary, string, string_len},
};

use crate::dialect::{Vocabulary, check, drop_tables, execute, indexes, is_postgres, references, timestamp_now};

const ZONE_TYPE: Vocabulary =
    Vocabulary { name: "camera_zone_type_enum", labels: &["entry_point", "driveway", "sidewalk", "yard", "other"] };

const SHAPE: Vocabulary = Vocabulary { name: "camera_zone_shape_enum", labels: &["rectangle", "polygon"] };

/// Condition for a color `#RRGGBB` on SQLite, which has no regular expressions.
const SQLITE_COLOR: &str = "color GLOB \
    '#[0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f]'";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        ZONE_TYPE.create(manager).await?;
        SHAPE.create(manager).await?;
        let color = if is_postgres(manager) { "color ~ '^#[0-9A-Fa-f]{6}$'" } else { SQLITE_COLOR };
        let zones = Table::create()
            .table("camera_zones")
            .col(string("id").primary_key())
            .col(string("camera_id"))
            .col(string_len("name", 255))
            .col(ZONE_TYPE.column(manager, "camera_zones", "zone_type").default("other"))
            .col(json_binary("coordinates"))
            .col(SHAPE.column(manager, "camera_zones", "shape").default("rectangle"))
            .col(string_len("color", 7).default("#3B82F6"))
            .col(boolean("enabled").default(true))
            .col(integer("priority").default(0))
            .col(timestamp_now(manager, "created_at"))
            .col(timestamp_now(manager, "updated_at"))
            .col(string("anchor").default("center"))
            .col(double_null("min_overlap"))
            .col(integer("version_id").default(1))
            .check(check("ck_camera_zones_priority_non_negative", "priority >= 0"))
            .check(check("ck_camera_zones_color_hex", color))
            .check(check("ck_camera_zones_anchor", "anchor IN ('center', 'foot', 'overlap')"))
            .check(check("ck_camera_zones_min_overlap_range", "min_overlap > 0.0 AND min_overlap <= 1.0"))
            .foreign_key(&mut references("camera_zones", "camera_id", "cameras", Cascade))
            .take();
        manager.create_table(zones).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_camera_zones_camera_id", &["camera_id"]),
            ("idx_camera_zones_enabled", &["enabled"]),
            ("idx_camera_zones_camera_enabled", &["camera_id", "enabled"]),
        ];
        indexes(manager, "camera_zones", btrees).await?;
        let unique = "CREATE UNIQUE INDEX idx_camera_zones_camera_id_name_unique \
            ON camera_zones (camera_id, name)";
        execute(manager, &[unique]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["camera_zones"]).await?;
        SHAPE.drop(manager).await?;
        ZONE_TYPE.drop(manager).await
    }
}
