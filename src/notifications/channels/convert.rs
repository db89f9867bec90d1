//! Conversions of channel rows to protobuf messages, and filters of channels.

use std::collections::HashMap;

use sea_orm::{ColumnTrait, DbBackend, EntityTrait, QueryFilter, Select, sea_query::Expr};

use crate::{
    alerts::engine::schedule,
    db::row,
    entity::{
        self, Severity,
        notification_channel::{self, ChannelKind, Column, Config, Entity},
    },
    error::Result,
    notifications::senders::url::shorten,
    pb::{self, notification_channel::Kind},
    rpc::{
        check,
        enums::{FromProto, proto_enum},
        time,
    },
};

impl pb::NotificationChannelFilter {
    pub(crate) fn select(&self, backend: DbBackend) -> Result<Select<Entity>> {
        let kinds = ChannelKind::all_from_proto("filter.kinds", &self.kinds)?;
        let name = check::text("filter.name", &self.name, 0..=100)?;
        let mut select = Entity::find();
        if let Some(enabled) = self.enabled {
            select = select.filter(Column::Enabled.eq(enabled));
        }
        if !kinds.is_empty() {
            select = select.filter(Column::Kind.is_in(kinds));
        }
        if !name.is_empty() {
            select = select.filter(row::contains(Expr::col(Column::Name), backend, &name));
        }
        Ok(select)
    }
}

impl From<notification_channel::Model> for pb::NotificationChannel {
    fn from(row: notification_channel::Model) -> Self {
        let now = entity::now();
        let quiet_times = row.quiet_times.unwrap_or_default().0;
        Self {
            id: row.id.to_string(),
            name: row.name,
            description: row.description,
            enabled: Some(row.enabled),
            quiet_times: quiet_times.into_iter().map(schedule::to_proto).collect(),
            quiet_except: row.quiet_except.map_or(pb::Severity::Unspecified, Into::into).into(),
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            version_id: row.version_id,
            disabled_reason: row.disabled_reason,
            throttled_until: row.throttled_until.filter(|until| *until > now).map(time::to_proto),
            kind: Some(to_proto_kind(row.config, now.timestamp())),
            secrets_problem: None,
        }
    }
}

fn to_proto_kind(config: Config, now: i64) -> Kind {
    match config {
        Config::Webhook { url, timeout_ms, signing_secrets, header_names, secrets_version: _ } => {
            let unexpired = signing_secrets.iter().filter(|at| at.is_none_or(|at| at > now));
            Kind::Webhook(pb::WebhookChannel {
                // Older servers stored the whole URL.
                url: shorten(&url),
                signing_secrets: Vec::new(),
                signing_secret_count: i32::try_from(unexpired.count()).unwrap_or(i32::MAX),
                headers: HashMap::new(),
                header_names,
                timeout: Some(time::duration_from_millis(timeout_ms.into())),
            })
        }
        Config::Email { host, port, security, username, has_password, from, to, timeout_ms, secrets_version: _ } => {
            Kind::Email(pb::EmailChannel {
                host,
                port: port.into(),
                security: pb::SmtpSecurity::from(security).into(),
                username,
                password: String::new(),
                has_password,
                from_address: from,
                to_addresses: to,
                timeout: Some(time::duration_from_millis(timeout_ms.into())),
            })
        }
        Config::Stream {} => Kind::Stream(pb::StreamChannel {}),
    }
}

proto_enum!(ChannelKind, pb::NotificationChannelKind { Webhook, Email, Stream });
proto_enum!(Severity, pb::Severity { Low, Medium, High, Critical });
