//! `activity_baselines` and `class_baselines`: usual activity and usual object classes of a camera, by
//! hour.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{double, integer, string},
};

use crate::dialect::{check, drop_tables, indexes, number_key, references, timestamp_now, unique};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let activity = Table::create()
            .table("activity_baselines")
            .col(number_key("id"))
            .col(string("camera_id"))
            .col(integer("hour"))
            .col(integer("day_of_week"))
            .col(double("avg_count").default(0.0))
            .col(integer("sample_count").default(0))
            .col(timestamp_now(manager, "last_updated"))
            .check(check("ck_activity_baselines_hour_range", "hour >= 0 AND hour <= 23"))
            .check(check("ck_activity_baselines_dow_range", "day_of_week >= 0 AND day_of_week <= 6"))
            .index(&mut unique("uq_activity_baseline_slot", &["camera_id", "hour", "day_of_week"]))
            .foreign_key(&mut references("activity_baselines", "camera_id", "cameras", Cascade))
            .take();
        manager.create_table(activity).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_activity_baseline_camera", &["camera_id"]),
            ("idx_activity_baseline_slot", &["camera_id", "hour", "day_of_week"]),
        ];
        indexes(manager, "activity_baselines", btrees).await?;
        let classes = Table::create()
            .table("class_baselines")
            .col(number_key("id"))
            .col(string("camera_id"))
            .col(string("detection_class"))
            .col(integer("hour"))
            .col(double("frequency").default(0.0))
            .col(integer("sample_count").default(0))
            .col(timestamp_now(manager, "last_updated"))
            .check(check("ck_class_baselines_hour_range", "hour >= 0 AND hour <= 23"))
            .index(&mut unique("uq_class_baseline_slot", &["camera_id", "detection_class", "hour"]))
            .foreign_key(&mut references("class_baselines", "camera_id", "cameras", Cascade))
            .take();
        manager.create_table(classes).await?;
        let btrees: &[(&str, &[&str])] = &[
            ("idx_class_baseline_camera", &["camera_id"]),
            ("idx_class_baseline_class", &["camera_id", "detection_class"]),
            ("idx_class_baseline_slot", &["camera_id", "detection_class", "hour"]),
        ];
        indexes(manager, "class_baselines", btrees).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["class_baselines", "activity_baselines"]).await
    }
}
