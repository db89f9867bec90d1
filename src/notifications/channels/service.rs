//! `NotificationChannelService`.

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{NotSet, Set},
    ColumnTrait, Condition, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};
use tokio::time::Instant;
use tonic::{Request, Response};
use uuid::Uuid;

use super::check::{SIGNING_SECRETS, UPDATABLE, expiries, signing_secret};
use crate::{
    alerts::lifecycle::deliveries::{self, DeliveryWakeup},
    db::{Db, row},
    entity::{
        self, alert_rule, delivery,
        notification_channel::{self, ChannelKind, Column, Config, Entity},
    },
    error::{Error, Result},
    feed::{self, Record, Topic},
    notifications::{
        delivery::{
            attempt::{Attempted, Outcome, Senders},
            deliverer::Deliverer,
            message::Message,
        },
        secrets::{sealed_for, version},
        senders::webhook,
    },
    pb::{
        self, ChangeKind, notification_channel_service_server::NotificationChannelService,
        watch_response::Update,
    },
    rpc::{Reply, check, mask::UpdateMask, page::Page, time},
};

/// How long old secrets are used beside a new one, in seconds: by default, and at most.
const OVERLAP: i64 = 86_400;
const LONGEST_OVERLAP: i64 = 30 * 86_400;

/// The notification channels.
#[derive(Debug, Clone)]
pub struct NotificationChannels {
    db: Db,
    /// Sends tests, and knows what may be sent where.
    senders: Senders,
    /// Told when a channel may deliver again.
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
        let (mut row, secrets) = channel.checked(
            new,
            crate::notifications::secrets::Secrets::default(),
            None,
            self.senders.targets(),
        )?;
        let (id, now) = (Uuid::now_v7(), entity::now());
        row.id = Set(id);
        row.name = Set(name);
        if let Some(config) = row.config.take() {
            let config = sealed_for(config, 0);
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
            let channel = row.insert(tx).await.map_err(taken)?;
            announce(tx, ChangeKind::Created, channel).await
        });
        Ok(Response::new(channel.await?))
    }

    async fn get_notification_channel(
        &self,
        request: Request<pb::GetNotificationChannelRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let channel = self.channel(id).await?;
        let secrets_problem = self.senders.keyring().open(&channel).err();
        Ok(Response::new(pb::NotificationChannel {
            secrets_problem,
            ..channel.into()
        }))
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
        let (mut notification_channels, next_page_token) = page
            .newest_first(self.db.reader(), select, columns, key)
            .await?;
        self.tell_problems(&mut notification_channels).await?;
        Ok(Response::new(pb::ListNotificationChannelsResponse {
            notification_channels,
            next_page_token,
        }))
    }

    async fn update_notification_channel(
        &self,
        request: Request<pb::UpdateNotificationChannelRequest>,
    ) -> Reply<pb::NotificationChannel> {
        let request = request.into_inner();
        let mut changes = request
            .notification_channel
            .ok_or_else(|| Error::invalid("notification_channel", "is required"))?;
        let id = check::uuid("notification_channel.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let new = changes.take_secrets(&mask);
        if self.channel(id).await?.kind != ChannelKind::Stream {
            self.senders.keyring().prepare(&self.db).await?;
        }
        let channel = self.db.write(async |tx| {
            let before = locked(tx, id).await?;
            if request
                .expected_version_id
                .is_some_and(|seen| seen != before.version_id)
            {
                let resource = "notification channel";
                return Err(Error::StaleVersion { resource });
            }
            let secrets = self.open(&before);
            let old = before.clone();
            // What the channel will be is checked as a whole, as a new one is.
            let channel = pb::NotificationChannel::from(before).with(changes, &mask)?;
            let (row, secrets) =
                channel.checked(new, secrets, Some(&old.config), self.senders.targets())?;
            let channel = self.change(tx, old, row, &secrets).await?;
            announce(tx, ChangeKind::Updated, channel).await
        });
        let channel = channel.await?;
        self.wakeup.notify();
        Ok(Response::new(channel))
    }

    async fn delete_notification_channel(
        &self,
        request: Request<pb::DeleteNotificationChannelRequest>,
    ) -> Reply<()> {
        let request = request.into_inner();
        let id = check::uuid("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            // Whoever writes a rule that names the channel waits here, or has been waited for.
            let channel = locked(tx, id).await?;
            if !request.force {
                refuse_used(tx, &channel.name).await?;
            }
            let of_channel = delivery::Column::ChannelId.eq(id);
            deliveries::cancel_queued(tx, of_channel, entity::now()).await?;
            Entity::delete_by_id(id).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, channel).await
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
            None => OVERLAP,
            Some(overlap) => {
                let seconds = check::within("overlap", overlap.seconds, 0..=LONGEST_OVERLAP)?;
                check::within("overlap.nanos", overlap.nanos, 0..=999_999_999)?;
                seconds
            }
        };
        let channel = self.db.write(async |tx| {
            let before = locked(tx, id).await?;
            if before.kind != ChannelKind::Webhook {
                return Err(wrong_kind(before.kind));
            }
            // The URL would be lost with the others.
            let opened = self.senders.keyring().open(&before);
            let mut secrets = opened.map_err(|problem| Error::SecretsUnreadable { problem })?;
            let now = entity::now().timestamp();
            let end = now + overlap;
            for old in &mut secrets.signing {
                old.expires_at = Some(old.expires_at.map_or(end, |at| at.min(end)));
            }
            let is_used = |at: Option<i64>| at.is_none_or(|at| at > now);
            secrets
                .signing
                .retain(|old| is_used(old.expires_at) && old.secret != secret.secret);
            secrets.signing.insert(0, secret);
            if secrets.signing.len() > SIGNING_SECRETS {
                let problem =
                    format!("there are {SIGNING_SECRETS} in use, of which one must expire first");
                return Err(Error::invalid("signing_secret", problem));
            }
            let mut config = before.config.clone();
            if let Config::Webhook {
                url,
                signing_secrets,
                ..
            } = &mut config
            {
                *url = webhook::shortened(url);
                *signing_secrets = expiries(&secrets);
            }
            let changed = notification_channel::ActiveModel {
                config: Set(config),
                ..<notification_channel::ActiveModel as ActiveModelTrait>::default()
            };
            let channel = self.change(tx, before, changed, &secrets).await?;
            announce(tx, ChangeKind::Updated, channel).await
        });
        Ok(Response::new(channel.await?))
    }

    async fn send_test_notification(
        &self,
        request: Request<pb::SendTestNotificationRequest>,
    ) -> Reply<pb::SendTestNotificationResponse> {
        let id = check::uuid("id", &request.into_inner().id)?;
        let channel = self.channel(id).await?;
        if channel.kind == ChannelKind::Stream {
            return Err(wrong_kind(channel.kind).into());
        }
        let begun = Instant::now();
        let message = Message::test(&channel.name, entity::now());
        let outcome = match self.senders.ready(&channel) {
            Ok(ready) => self.senders.send(&ready, &message).await,
            Err(problem) => Outcome::failed(problem),
        };
        Ok(Response::new(answer(&outcome, begun.elapsed())))
    }
}

impl NotificationChannels {
    /// The channels of this database.
    pub fn new(db: Db, deliverer: &Deliverer) -> Self {
        Self {
            db,
            senders: deliverer.senders().clone(),
            wakeup: deliverer.wakeup().clone(),
        }
    }

    async fn channel(&self, id: Uuid) -> Result<notification_channel::Model> {
        let channel = Entity::find_by_id(id).one(self.db.reader()).await?;
        row::require(channel, "notification channel", id)
    }

    /// Fills in why the secrets of channels cannot be decrypted.
    async fn tell_problems(&self, channels: &mut [pb::NotificationChannel]) -> Result<()> {
        let ids = channels
            .iter()
            .filter_map(|channel| channel.id.parse::<Uuid>().ok());
        let rows = Entity::find().filter(Column::Id.is_in(ids));
        let rows = rows.all(self.db.reader()).await?;
        let problem = |row: &notification_channel::Model| self.senders.keyring().open(row).err();
        let problems = rows
            .iter()
            .filter_map(|row| Some((row.id.to_string(), problem(row)?)));
        let mut problems: HashMap<_, _> = problems.collect();
        for channel in channels {
            channel.secrets_problem = problems.remove(&channel.id);
        }
        Ok(())
    }

    /// What is secret of a channel. Without the key it was encrypted with there is nothing, and new secrets are required.
    fn open(
        &self,
        channel: &notification_channel::Model,
    ) -> crate::notifications::secrets::Secrets {
        let keyring = self.senders.keyring();
        let secrets = keyring.open(channel);
        secrets.unwrap_or_else(|problem| {
            tracing::warn!(channel = %channel.name, problem, "the secrets of a notification channel are lost");
            crate::notifications::secrets::Secrets::default()
        })
    }

    /// Writes what has changed of a channel that is locked.
    async fn change(
        &self,
        tx: &DatabaseTransaction,
        before: notification_channel::Model,
        mut changed: notification_channel::ActiveModel,
        secrets: &crate::notifications::secrets::Secrets,
    ) -> Result<notification_channel::Model> {
        changed.id = Set(before.id);
        let config = changed.config.take().unwrap_or(before.config.clone());
        let config = sealed_for(config, version(&before.config));
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

fn answer(outcome: &Outcome, took: Duration) -> pb::SendTestNotificationResponse {
    pb::SendTestNotificationResponse {
        delivered: outcome.result == Attempted::Delivered,
        error: outcome.error().unwrap_or_default().to_string(),
        status_code: outcome.status_code,
        took: Some(time::duration_from_millis(
            i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
        )),
    }
}

/// The channel; nobody else changes it before the transaction ends.
async fn locked(tx: &DatabaseTransaction, id: Uuid) -> Result<notification_channel::Model> {
    row::require(
        Entity::find_by_id(id).lock_exclusive().one(tx).await?,
        "notification channel",
        id,
    )
}

/// Announces a change of a channel.
pub(crate) async fn announce(
    tx: &DatabaseTransaction,
    kind: ChangeKind,
    channel: notification_channel::Model,
) -> Result<pb::NotificationChannel> {
    let channel = pb::NotificationChannel::from(channel);
    let change = pb::NotificationChannelChange {
        kind: kind.into(),
        notification_channel: Some(channel.clone()),
    };
    let message = pb::WatchResponse {
        update: Some(Update::NotificationChannel(change)),
        ..Default::default()
    };
    let record = Record {
        topic: Topic::NotificationChannels,
        key: channel.id.clone(),
        message: message.encode_to_vec(),
    };
    feed::record(tx, [record]).await?;
    Ok(channel)
}

/// Refuses to delete a channel that rules name.
async fn refuse_used(tx: &DatabaseTransaction, name: &str) -> Result<()> {
    use alert_rule::Column::{Channels, Escalation};

    let rules = alert_rule::Entity::find()
        .filter(
            Condition::any()
                .add(Channels.is_not_null())
                .add(Escalation.is_not_null()),
        )
        .all(tx)
        .await?;
    let names = |rule: &alert_rule::Model| {
        let at_once = rule.channels.iter().flat_map(|channels| &channels.0);
        let steps = rule.escalation.iter().flat_map(|steps| &steps.0);
        let later = steps.flat_map(|step| &step.channels);
        at_once.chain(later).any(|channel| channel == name)
    };
    let rules: Vec<_> = rules.into_iter().filter(names).collect();
    if rules.is_empty() {
        return Ok(());
    }
    let rules = rules
        .iter()
        .map(|rule| (rule.name.as_str(), rule.id.to_string()));
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

/// The name is the only value that must be unique.
fn taken(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    if !matches!(error, Error::AlreadyExists { .. }) {
        return error;
    }
    Error::AlreadyExists {
        field: "notification_channel.name".into(),
        problem: "another notification channel has it".into(),
    }
}
