//! Results of the enrichment models for a detection: pose, threat, demographics, re-identification,
//! action.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, boolean, double, double_null, json_binary_null, string_len, string_len_null},
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
        create_pose_results(manager).await?;
        create_threat_detections(manager).await?;
        create_demographics_results(manager).await?;
        create_reid_embeddings(manager).await?;
        create_action_results(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables = ["action_results", "reid_embeddings", "demographics_results", "threat_detections", "pose_results"];
        drop_tables(manager, &tables).await
    }
}

async fn create_pose_results(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let poses = Table::create()
        .table("pose_results")
        .col(number_key("id"))
        .col(big_integer("detection_id"))
        .col(json_binary_null("keypoints"))
        .col(string_len_null("pose_class", 50))
        .col(double_null("confidence"))
        .col(boolean("is_suspicious").default(false))
        .col(timestamp_now(manager, "created_at"))
        .check(check(
            "ck_pose_results_confidence_range",
            "confidence IS NULL OR (confidence >= 0.0 AND confidence <= 1.0)",
        ))
        .check(check(
            "ck_pose_results_pose_class",
            "pose_class IS NULL \
            OR pose_class IN ('standing', 'crouching', 'bending_over', 'arms_raised', \
            'sitting', 'lying_down', 'unknown')",
        ))
        .index(&mut unique("uq_pose_results_detection_id", &["detection_id"]))
        .foreign_key(&mut references("pose_results", "detection_id", "detections", Cascade))
        .take();
    manager.create_table(poses).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_pose_results_detection_id", &["detection_id"]),
        ("idx_pose_results_created_at", &["created_at"]),
        ("idx_pose_results_is_suspicious", &["is_suspicious"]),
    ];
    indexes(manager, "pose_results", btrees).await
}

async fn create_threat_detections(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let threats = Table::create()
        .table("threat_detections")
        .col(number_key("id"))
        .col(big_integer("detection_id"))
        .col(string_len("threat_type", 50))
        .col(double("confidence"))
        .col(string_len("severity", 20))
        .col(json_binary_null("bbox"))
        .col(timestamp_now(manager, "created_at"))
        .check(check("ck_threat_detections_confidence_range", "confidence >= 0.0 AND confidence <= 1.0"))
        .check(check("ck_threat_detections_severity", "severity IN ('critical', 'high', 'medium', 'low')"))
        .check(check(
            "ck_threat_detections_threat_type",
            "threat_type IN ('gun', 'knife', 'grenade', 'explosive', 'weapon', 'other')",
        ))
        .foreign_key(&mut references("threat_detections", "detection_id", "detections", Cascade))
        .take();
    manager.create_table(threats).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_threat_detections_detection_id", &["detection_id"]),
        ("idx_threat_detections_created_at", &["created_at"]),
        ("idx_threat_detections_threat_type", &["threat_type"]),
        ("idx_threat_detections_severity", &["severity"]),
        ("idx_threat_detections_type_severity", &["threat_type", "severity"]),
    ];
    indexes(manager, "threat_detections", btrees).await
}

async fn create_demographics_results(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let demographics = Table::create()
        .table("demographics_results")
        .col(number_key("id"))
        .col(big_integer("detection_id"))
        .col(string_len_null("age_range", 20))
        .col(double_null("age_confidence"))
        .col(string_len_null("gender", 20))
        .col(double_null("gender_confidence"))
        .col(timestamp_now(manager, "created_at"))
        .check(check(
            "ck_demographics_results_age_confidence_range",
            "age_confidence IS NULL OR (age_confidence >= 0.0 AND age_confidence <= 1.0)",
        ))
        .check(check(
            "ck_demographics_results_gender_confidence_range",
            "gender_confidence IS NULL OR (gender_confidence >= 0.0 AND gender_confidence <= 1.0)",
        ))
        .check(check("ck_demographics_results_gender", "gender IS NULL OR gender IN ('male', 'female', 'unknown')"))
        .check(check(
            "ck_demographics_results_age_range",
            "age_range IS NULL \
            OR age_range IN ('0-10', '11-20', '21-30', '31-40', '41-50', '51-60', '61-70', \
            '71-80', '81+', 'unknown')",
        ))
        .index(&mut unique("uq_demographics_results_detection_id", &["detection_id"]))
        .foreign_key(&mut references("demographics_results", "detection_id", "detections", Cascade))
        .take();
    manager.create_table(demographics).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_demographics_results_detection_id", &["detection_id"]),
        ("idx_demographics_results_created_at", &["created_at"]),
    ];
    indexes(manager, "demographics_results", btrees).await
}

async fn create_reid_embeddings(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let embeddings = Table::create()
        .table("reid_embeddings")
        .col(number_key("id"))
        .col(big_integer("detection_id"))
        .col(json_binary_null("embedding"))
        .col(string_len_null("embedding_hash", 64))
        .col(timestamp_now(manager, "created_at"))
        .index(&mut unique("uq_reid_embeddings_detection_id", &["detection_id"]))
        .foreign_key(&mut references("reid_embeddings", "detection_id", "detections", Cascade))
        .take();
    manager.create_table(embeddings).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_reid_embeddings_detection_id", &["detection_id"]),
        ("idx_reid_embeddings_created_at", &["created_at"]),
        ("idx_reid_embeddings_embedding_hash", &["embedding_hash"]),
    ];
    indexes(manager, "reid_embeddings", btrees).await
}

async fn create_action_results(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let actions = Table::create()
        .table("action_results")
        .col(number_key("id"))
        .col(big_integer("detection_id"))
        .col(string_len_null("action", 100))
        .col(double_null("confidence"))
        .col(boolean("is_suspicious").default(false))
        .col(json_binary_null("all_scores"))
        .col(timestamp_now(manager, "created_at"))
        .check(check(
            "ck_action_results_confidence_range",
            "confidence IS NULL OR (confidence >= 0.0 AND confidence <= 1.0)",
        ))
        .index(&mut unique("uq_action_results_detection_id", &["detection_id"]))
        .foreign_key(&mut references("action_results", "detection_id", "detections", Cascade))
        .take();
    manager.create_table(actions).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_action_results_detection_id", &["detection_id"]),
        ("idx_action_results_created_at", &["created_at"]),
        ("idx_action_results_action", &["action"]),
        ("idx_action_results_is_suspicious", &["is_suspicious"]),
    ];
    indexes(manager, "action_results", btrees).await
}
