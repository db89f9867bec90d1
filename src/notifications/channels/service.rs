//! Implementation of `NotificationChannelService`.

use std::{collections::HashMap, time::Duration};

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{NotSet, Set},
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};
use tokio::time::Instant;
use tonic::{Request, Response};
use uuid::Uuid;

use super::{
    change_record::record_change,
    check::{MAX_SIGNING_SECRETS, UPDATABLE, expiries, signing_secret},
};
use crate::{
    alerts::lifecycle::deliveries::{self, DeliveryWakeup},
    db::{Db, row},
    entity::{
        self, alert_rule, delivery,
        notification_channel::{self, ChannelKind, Column, Config, Entity},
    },
    error::{Error, Result},
    notifications::{
        delivery::{
            attempt::Senders,
            deliverer::Deliverer,
            message::Message,
            outcome::{AttemptResult, Outcome},
        },
        secrets::{Secrets, secrets_version, with_next_version},
        senders::url::shorten,
    },
    pb::{self, ChangeKind, notification_channel_service_server::NotificationChannelService},
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
};

/// Time during which old signing secrets stay valid after a rotation, in seconds: by default, and at most.
const DEFAULT_OVERLAP_SECONDS: i64 = 86_400;
const MAX_OVERLAP_SECONDS: i64 = 30 * 86_400;

/// Implementation of `NotificationChannelService`. Clones share the state.
#[derive(Debug, Clone)]
pub struct NotificationChannels {
    db: Db,
    /// Senders of test messages, with the keyring and the allowed targets.
    senders: Senders,
    /// Notified of channels that may deliver again.
    wakeup: DeliveryWakeup,
}

#[tonic::async_trait]
impl NotificationChannelService for NotificationChannels {
    async fn create_notification_channel(
        &self,
        request: Request<pb::CreateNotificationChannelRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let mut channel = request
            .into_inner()
            .notification_channel
            .ok_or_else(|| Error::invalid("notification_channel", "is required"))?;
        let name = check::name("notification_channel.name", &channel.name, 1..=100)?;
        let new = channel.take_secrets(&UpdateMask::Populated);
        let (mut row, secrets) = channel.to_row(new, Secrets::default(), None, self.senders.targets())?;
        let (id, now) = (Uuid::now_v7(), entity::now());
        row.id = Set(id);
        row.name = Set(name);
        if let Some(config) = row.config.take() {
            let config = with_next_version(config, 0);
            if !matches!(config, Config::Stream {}) {
                self.senders.keyring().prepare(&self.db).await?;
                let sealed = self.senders.keyring().seal(id, &config, &secrets)?;
                row.secrets = Set(Some(sealed));
            }
            row.config = Set(config);
        }
        row.created_at = Set(now);
        row.updated_at = Set(now);
        row.version_id = Set(1);
        let channel = self.db.write(async |tx| {
            let channel = row.insert(tx).await.map_err(name_conflict)?;
            record_change(tx, ChangeKind::Created, channel).await
        });
        Ok(Response::new(channel.await?))
    }

    async fn get_notification_channel(
        &self,
        request: Request<pb::GetNotificationChannelRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let channel = self.read_channel(id).await?;
        let secrets_problem = self.senders.keyring().open(&channel).err();
        Ok(Response::new(pb::NotificationChannel { secrets_problem, ..channel.into() }))
    }

    async fn list_notification_channels(
        &self,
        request: Request<pb::ListNotificationChannelsRequest>,
    ) -> Reply<pb::ListNotificationChannelsResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let list = "notification_channels";
        let page = Page::parse(request.page_size, &request.page_token, list, &filter)?;
        let columns = (Column::CreatedAt, Column::Id);
        let key = |channel: &notification_channel::Model| (channel.created_at, channel.id);
        let select = filter.select(self.db.backend())?;
        let (mut notification_channels, next_page_token) =
            page.newest_first(self.db.reader(), select, columns, key).await?;
        self.fill_secrets_problems(&mut notification_channels).await?;
        Ok(Response::new(pb::ListNotificationChannelsResponse { notification_channels, next_page_token }))
    }

    async fn update_notification_channel(
        &self,
        request: Request<pb::UpdateNotificationChannelRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let request = request.into_inner();
        let mut changes =
            request.notification_channel.ok_or_else(|| Error::invalid("notification_channel", "is required"))?;
        let id = check::uuid("notification_channel.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let new = changes.take_secrets(&mask);
        if self.read_channel(id).await?.kind != ChannelKind::Stream {
            self.senders.keyring().prepare(&self.db).await?;
        }
        let channel = self.db.write(async |tx| {
            let before = lock_channel(tx, id).await?;
            if request.expected_version_id.is_some_and(|version| version != before.version_id) {
                let resource = "notification channel";
                return Err(Error::StaleVersion { resource });
            }
            let secrets = self.open_or_default(&before);
            let previous = before.clone();
            // The updated channel is validated as a whole, like a new one.
            let channel = pb::NotificationChannel::from(before).with_changes(changes, &mask)?;
            let (row, secrets) = channel.to_row(new, secrets, Some(&previous.config), self.senders.targets())?;
            let channel = self.update_locked(tx, previous, row, &secrets).await?;
            record_change(tx, ChangeKind::Updated, channel).await
        });
        let channel = channel.await?;
        self.wakeup.notify();
        Ok(Response::new(channel))
    }

    async fn delete_notification_channel(&self, request: Request<pb::DeleteNotificationChannelRequest>) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            // The lock waits for, or blocks, transactions writing rules with the channel.
            let channel = lock_channel(tx, id).await?;
            if !request.force {
                refuse_in_use(tx, &channel.name).await?;
            }
            let is_of_channel = delivery::Column::ChannelId.eq(id);
            deliveries::cancel_queued(tx, is_of_channel, entity::now()).await?;
            Entity::delete_by_id(id).exec(tx).await?;
            record_change(tx, ChangeKind::Deleted, channel).await
        });
        deleted.await?;
        Ok(Response::new(()))
    }

    async fn rotate_signing_secret(
        &self,
        request: Request<pb::RotateSigningSecretRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let secret = signing_secret("signing_secret", &request.signing_secret)?;
        let overlap = match request.overlap {
            None => DEFAULT_OVERLAP_SECONDS,
            Some(overlap) => {
                let seconds = check::within("overlap", overlap.seconds, 0..=MAX_OVERLAP_SECONDS)?;
                check::within("overlap.nanos", overlap.nanos, 0..=999_999_999)?;
                seconds
            }
        };
        let channel = self.db.write(async |tx| {
            let before = lock_channel(tx, id).await?;
            if before.kind != ChannelKind::Webhook {
                return Err(wrong_kind(before.kind));
            }
            // Without the other secrets, the URL would be lost.
            let opened = self.senders.keyring().open(&before);
            let mut secrets = opened.map_err(|problem| Error::SecretsUnreadable { problem })?;
            let now = entity::now().timestamp();
            let end = now + overlap;
            for old in &mut secrets.signing {
                old.expires_at = Some(old.expires_at.map_or(end, |at| at.min(end)));
            }
            let is_used = |at: Option<i64>| at.is_none_or(|at| at > now);
            secrets.signing.retain(|old| is_used(old.expires_at) && old.secret != secret.secret);
            secrets.signing.insert(0, secret);
            if secrets.signing.len() > MAX_SIGNING_SECRETS {
                let problem = format!("there are {MAX_SIGNING_SECRETS} in use, of which one must expire first");
                return Err(Error::invalid("signing_secret", problem));
            }
            let mut config = before.config.clone();
            if let Config::Webhook { url, signing_secrets, .. } = &mut config {
                *url = shorten(url);
                *signing_secrets = expiries(&secrets);
            }
            let changed = notification_channel::ActiveModel {
                config: Set(config),
                ..<notification_channel::ActiveModel as ActiveModelTrait>::default()
            };
            let channel = self.update_locked(tx, before, changed, &secrets).await?;
            record_change(tx, ChangeKind::Updated, channel).await
        });
        Ok(Response::new(channel.await?))
    }

    async fn send_test_notification(
        &self,
        request: Request<pb::SendTestNotificationRequest>,
    ) -> Reply<pb::SendTestNotificationResponse> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let channel = self.read_channel(id).await?;
        if channel.kind == ChannelKind::Stream {
            return Err(wrong_kind(channel.kind).into());
        }
        let started = Instant::now();
        let message = Message::test(&channel.name, entity::now());
        let outcome = match self.senders.prepare_channel(&channel) {
            Ok(prepared) => self.senders.send(&prepared, &message).await,
            Err(problem) => Outcome::failed(problem),
        };
        Ok(Response::new(to_response(&outcome, started.elapsed())))
    }
}

impl NotificationChannels {
    /// Creates the service of a database.
    pub fn new(db: Db, deliverer: &Deliverer) -> Self {
        Self { db, senders: deliverer.senders().clone(), wakeup: deliverer.wakeup().clone() }
    }

    async fn read_channel(&self, id: Uuid) -> Result<notification_channel::Model> {
        let channel = Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(channel, "notification channel", id)
    }

    /// Fills in the reasons of undecryptable secrets.
    async fn fill_secrets_problems(&self, channels: &mut [pb::NotificationChannel]) -> Result<()> {
        let ids = channels.iter().filter_map(|channel| channel.id.parse::<Uuid>().ok());
        let rows = Entity::find().filter(Column::Id.is_in(ids));
        let rows = rows.all(self.db.reader()).await?;
        let problem = |row: &notification_channel::Model| self.senders.keyring().open(row).err();
        let problems = rows.iter().filter_map(|row| Some((row.id.to_string(), problem(row)?)));
        let mut problems: HashMap<_, _> = problems.collect();
        for channel in channels {
            channel.secrets_problem = problems.remove(&channel.id);
        }
        Ok(())
    }

    /// Decrypts the secrets of a channel. Undecryptable secrets are lost, so the request must set new ones.
    fn open_or_default(&self, channel: &notification_channel::Model) -> Secrets {
        let keyring = self.senders.keyring();
        let secrets = keyring.open(channel);
        secrets.unwrap_or_else(|problem| {
            tracing::warn!(channel = %channel.name, problem, "failed to decrypt the secrets of a notification channel; new secrets are required");
            Secrets::default()
        })
    }

    /// Writes a changed, locked channel with its secrets.
    async fn update_locked(
        &self,
        tx: &DatabaseTransaction,
        before: notification_channel::Model,
        mut changed: notification_channel::ActiveModel,
        secrets: &Secrets,
    ) -> Result<notification_channel::Model> {
        changed.id = Set(before.id);
        let config = changed.config.take().unwrap_or(before.config.clone());
        let config = with_next_version(config, secrets_version(&before.config));
        if !matches!(config, Config::Stream {}) {
            let sealed = self.senders.keyring().seal(before.id, &config, secrets)?;
            changed.secrets = Set(Some(sealed));
        }
        changed.config = Set(config);
        changed.updated_at = Set(entity::now().max(before.updated_at));
        changed.version_id = Set(before.version_id + 1);
        if matches!(changed.enabled, Set(true)) {
            changed.disabled_reason = Set(None);
        }
        changed.created_at = NotSet;
        Ok(changed.update(tx).await?)
    }
}

fn to_response(outcome: &Outcome, duration: Duration) -> pb::SendTestNotificationResponse {
    pb::SendTestNotificationResponse {
        delivered: outcome.result == AttemptResult::Delivered,
        error: outcome.error().unwrap_or_default().to_string(),
        status_code: outcome.status_code,
        duration: Some(time::duration_to_proto(duration)),
    }
}

/// Locks a channel until the end of the transaction.
async fn lock_channel(tx: &DatabaseTransaction, id: Uuid) -> Result<notification_channel::Model> {
    row::require(Entity::find_by_id(id).lock_exclusive().one(tx).await?, "notification channel", id)
}

/// Refuses a channel named by rules.
async fn refuse_in_use(tx: &DatabaseTransaction, name: &str) -> Result<()> {
    use alert_rule::Column::{Channels, Escalation};

    let rules = alert_rule::Entity::find()
        .filter(Condition::any().add(Channels.is_not_null()).add(Escalation.is_not_null()))
        .all(tx)
        .await?;
    let names_channel = |rule: &alert_rule::Model| {
        let immediate = rule.channels.iter().flat_map(|channels| &channels.0);
        let steps = rule.escalation.iter().flat_map(|steps| &steps.0);
        let escalated = steps.flat_map(|step| &step.channels);
        immediate.chain(escalated).any(|channel| channel == name)
    };
    let rules: Vec<_> = rules.into_iter().filter(names_channel).collect();
    if rules.is_empty() {
        return Ok(());
    }
    let rules = rules.iter().map(|rule| (rule.name.as_str(), rule.id.to_string()));
    Err(Error::in_use("notification channel", "alert rule", rules))
}

fn wrong_kind(kind: ChannelKind) -> Error {
    Error::WrongKind {
        resource: "notification channel",
        kind: pb::NotificationChannelKind::from(kind)
            .as_str_name()
            .trim_start_matches("NOTIFICATION_CHANNEL_KIND_")
            .to_string(),
    }
}

/// Names the conflicting field: only the name is unique.
fn name_conflict(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    if !matches!(error, Error::AlreadyExists { .. }) {
        return error;
    }
    Error::AlreadyExists {
        field: "notification_channel.name".into(),
        problem: "another notification channel has it".into(),
    }
}
