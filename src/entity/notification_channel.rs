//! Table `notification_channels`: channels that notify people and programs of alerts.

use sea_orm::{FromJsonQueryResult, Set, entity::prelude::*};
use serde::{Deserialize, Serialize};

use super::{Severity, alert_rule::Schedule};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "notification_channels")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(unique)]
    pub name: String,
    pub description: Option<String>,
    pub enabled: bool,
    pub kind: ChannelKind,
    /// Public part of the configuration.
    #[sea_orm(column_type = "JsonBinary")]
    pub config: Config,
    /// Encrypted secret part of the configuration.
    pub secrets: Option<Vec<u8>>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub quiet_times: Option<Schedules>,
    /// Minimum severity that is delivered during quiet times.
    pub quiet_except: Option<Severity>,
    /// Reason if the server disabled the channel.
    pub disabled_reason: Option<String>,
    /// Time until which the receiver requested a pause.
    pub throttled_until: Option<DateTimeUtc>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Version, incremented by every change.
    pub version_id: i32,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        let now = super::now();
        Self {
            id: Set(Uuid::now_v7()),
            created_at: Set(now),
            updated_at: Set(now),
            version_id: Set(1),
            ..<Self as ActiveModelTrait>::default()
        }
    }
}

/// Kind of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::N(16))", rename_all = "snake_case")]
pub enum ChannelKind {
    Webhook,
    Email,
    Stream,
}

/// Public configuration by kind of channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    Webhook {
        /// Redacted URL; the full URL is part of the secrets.
        url: String,
        timeout_ms: u32,
        /// Expiry times of the signing secrets, in seconds since 1970; `None` for a secret without
        /// expiry.
        signing_secrets: Vec<Option<i64>>,
        header_names: Vec<String>,
        /// Version of the secrets, incremented by every encryption.
        #[serde(default)]
        secrets_version: u32,
    },
    Email {
        host: String,
        port: u16,
        security: Security,
        username: Option<String>,
        has_password: bool,
        from: String,
        to: Vec<String>,
        timeout_ms: u32,
        /// Version of the secrets, incremented by every encryption.
        #[serde(default)]
        secrets_version: u32,
    },
    Stream {},
}

/// Encryption of a connection to a mail server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    Starttls,
    Tls,
    None,
}

/// List of weekly time windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct Schedules(pub Vec<Schedule>);
