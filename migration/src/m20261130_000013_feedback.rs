//! `event_feedback`: people's feedback on events; `event_audits`: quality of the analysis of events.

use ForeignKeyAction::Cascade;
use sea_orm_migration::{
    prelude::*,
    schema::{big_integer, boolean, double, double_null, integer, integer_null, string, string_null, text_null},
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
        create_event_feedback(manager).await?;
        create_event_audits(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["event_audits", "event_feedback"]).await
    }
}

async fn create_event_feedback(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let feedback = Table::create()
        .table("event_feedback")
        .col(number_key("id"))
        .col(big_integer("event_id"))
        .col(string("feedback_type"))
        .col(text_null("notes"))
        .col(string_null("expected_severity"))
        .col(timestamp_now(manager, "created_at"))
        .check(check(
            "ck_event_feedback_type",
            "feedback_type IN ('accurate', 'correct', 'false_positive', 'missed_threat', \
            'severity_wrong')",
        ))
        .check(check(
            "ck_event_feedback_expected_severity",
            "expected_severity IS NULL \
            OR expected_severity IN ('low', 'medium', 'high', 'critical')",
        ))
        .index(&mut unique("uq_event_feedback_event_id", &["event_id"]))
        .foreign_key(&mut references("event_feedback", "event_id", "events", Cascade))
        .take();
    manager.create_table(feedback).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_event_feedback_event_id", &["event_id"]),
        ("idx_event_feedback_type", &["feedback_type"]),
        ("idx_event_feedback_created_at", &["created_at"]),
    ];
    indexes(manager, "event_feedback", btrees).await
}

async fn create_event_audits(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let audits = Table::create()
        .table("event_audits")
        .col(number_key("id"))
        .col(big_integer("event_id"))
        .col(timestamp_now(manager, "audited_at"))
        .col(boolean("has_yolo26").default(false))
        .col(boolean("has_florence").default(false))
        .col(boolean("has_clip").default(false))
        .col(boolean("has_violence").default(false))
        .col(boolean("has_clothing").default(false))
        .col(boolean("has_vehicle").default(false))
        .col(boolean("has_pet").default(false))
        .col(boolean("has_weather").default(false))
        .col(boolean("has_image_quality").default(false))
        .col(boolean("has_zones").default(false))
        .col(boolean("has_baseline").default(false))
        .col(boolean("has_cross_camera").default(false))
        .col(integer("prompt_length").default(0))
        .col(integer("prompt_token_estimate").default(0))
        .col(double("enrichment_utilization").default(0.0))
        .col(double_null("context_usage_score"))
        .col(double_null("reasoning_coherence_score"))
        .col(double_null("risk_justification_score"))
        .col(double_null("consistency_score"))
        .col(double_null("overall_quality_score"))
        .col(integer_null("consistency_risk_score"))
        .col(integer_null("consistency_diff"))
        .col(text_null("self_eval_critique"))
        .col(text_null("self_eval_prompt"))
        .col(text_null("self_eval_response"))
        .col(text_null("missing_context"))
        .col(text_null("confusing_sections"))
        .col(text_null("unused_data"))
        .col(text_null("format_suggestions"))
        .col(text_null("model_gaps"))
        .check(check(
            "ck_event_audits_enrichment_range",
            "enrichment_utilization >= 0.0 AND enrichment_utilization <= 1.0",
        ))
        .check(check(
            "ck_event_audits_context_score_range",
            "context_usage_score IS NULL \
            OR (context_usage_score >= 1.0 AND context_usage_score <= 5.0)",
        ))
        .check(check(
            "ck_event_audits_reasoning_score_range",
            "reasoning_coherence_score IS NULL \
            OR (reasoning_coherence_score >= 1.0 AND reasoning_coherence_score <= 5.0)",
        ))
        .check(check(
            "ck_event_audits_risk_justification_range",
            "risk_justification_score IS NULL \
            OR (risk_justification_score >= 1.0 AND risk_justification_score <= 5.0)",
        ))
        .check(check(
            "ck_event_audits_consistency_score_range",
            "consistency_score IS NULL OR (consistency_score >= 1.0 AND consistency_score <= 5.0)",
        ))
        .check(check(
            "ck_event_audits_overall_score_range",
            "overall_quality_score IS NULL \
            OR (overall_quality_score >= 1.0 AND overall_quality_score <= 5.0)",
        ))
        .index(&mut unique("uq_event_audits_event_id", &["event_id"]))
        .foreign_key(&mut references("event_audits", "event_id", "events", Cascade))
        .take();
    manager.create_table(audits).await?;
    let btrees: &[(&str, &[&str])] = &[
        ("idx_event_audits_event_id", &["event_id"]),
        ("idx_event_audits_audited_at", &["audited_at"]),
        ("idx_event_audits_overall_score", &["overall_quality_score"]),
    ];
    indexes(manager, "event_audits", btrees).await
}
