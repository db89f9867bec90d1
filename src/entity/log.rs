//! Table `logs`: log messages of the components of the system.

use sea_orm::{Set, entity::prelude::*};

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "logs")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub timestamp: DateTimeUtc,
    pub level: LogLevel,
    pub component: String,
    pub message: String,
    /// Camera of the message. Not a foreign key, because the message outlives the camera.
    pub camera_id: Option<String>,
    /// Event of the message. Not a foreign key, because the message outlives the event.
    pub event_id: Option<i64>,
    pub request_id: Option<String>,
    /// Detection of the message. Not a foreign key, because the message outlives the detection.
    pub detection_id: Option<i64>,
    /// Duration of the logged operation, in milliseconds.
    pub duration_ms: Option<i32>,
    /// Structured context of the message.
    #[sea_orm(column_type = "JsonBinary", nullable)]
    pub extra: Option<Json>,
    pub source: LogSource,
    pub user_agent: Option<String>,
}

impl ActiveModelBehavior for ActiveModel {
    fn new() -> Self {
        Self { timestamp: Set(super::now()), ..<Self as ActiveModelTrait>::default() }
    }
}

/// Level of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "UPPERCASE")]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

/// Origin of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "String(StringLen::None)", rename_all = "snake_case")]
pub enum LogSource {
    Backend,
    Frontend,
}
