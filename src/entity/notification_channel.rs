//! `notification_channels`: by which people and programs are told of alerts.

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
    /// What is no secret of it.
    #[sea_orm(column_type = "JsonBinary")]
    pub config: Config,
    /// What is, encrypted.
    pub secrets: Option<Vec<u8>>,
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub quiet_times: Option<Schedules>,
    /// The lowest severity that is delivered in quiet times too.
    pub quiet_except: Option<Severity>,
    /// Why the server has disabled it.
    pub disabled_reason: Option<String>,
    /// The receiver has asked to wait until then.
    pub throttled_until: Option<DateTimeUtc>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    /// Raised by one with every change.
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

/// What kind of channel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(
    rs_type = "String",
    db_type = "String(StringLen::N(16))",
    rename_all = "snake_case"
)]
pub enum ChannelKind {
    Webhook,
    Email,
    Stream,
}

/// How a channel of its kind delivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    Webhook {
        /// As it is shown: the whole URL is among the secrets.
        url: String,
        timeout_ms: u32,
        /// How many secrets there are, and until when (in seconds since 1970) those that expire.
        signing_secrets: Vec<Option<i64>>,
        header_names: Vec<String>,
        /// Raised by one whenever the secrets are encrypted.
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
        /// Raised by one whenever the secrets are encrypted.
        #[serde(default)]
        secrets_version: u32,
    },
    Stream {},
}

/// How a connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    Starttls,
    Tls,
    None,
}

/// Windows of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, FromJsonQueryResult)]
pub struct Schedules(pub Vec<Schedule>);
