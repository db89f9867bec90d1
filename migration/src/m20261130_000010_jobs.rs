//! Jobs: the queue with its attempts, logs and transitions; settings of queues and types; schedules.

use sea_orm_migration::prelude::*;

use crate::dialect::{drop_tables, per_backend};

mod job_attempts;
mod job_logs;
mod job_queues;
mod job_schedules;
mod job_transitions;
mod job_types;
mod jobs;

/// Function that makes a UUID version 7: a random UUID whose first 48 bits are replaced by the
/// milliseconds since 1970, and whose version (four bits from bit 52 on) is changed from 4 to 7.
const UUID7: &str = "
    CREATE OR REPLACE FUNCTION watchpost_uuid7() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
        SELECT encode(set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(
                int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
    $$";

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        per_backend(manager, &[UUID7], &[]).await?;
        jobs::create(manager).await?;
        job_attempts::create(manager).await?;
        job_logs::create(manager).await?;
        job_transitions::create(manager).await?;
        job_queues::create(manager).await?;
        job_types::create(manager).await?;
        job_schedules::create(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let tables =
            ["job_schedules", "job_types", "job_queues", "job_transitions", "job_logs", "job_attempts", "jobs"];
        drop_tables(manager, &tables).await?;
        per_backend(manager, &["DROP FUNCTION watchpost_uuid7()"], &[]).await
    }
}
