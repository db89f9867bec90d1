//! `TestAlertRule`: backtest of a rule against stored events.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use async_stream::try_stream;
use chrono::{DateTime, Utc};
use futures_util::Stream;
use sea_orm::{ActiveValue::Set, EntityTrait, TryIntoModel};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use uuid::Uuid;

use super::{
    channels, legacy,
    service::AlertRules,
    stored_events::{EventRange, StoredEvent},
    zones::refuse_unknown_zones,
};
use crate::{
    alerts::engine::{
        evaluate::{self, Verdict},
        rule::Rule,
        template::Values,
    },
    db::{Db, row},
    entity::{
        self,
        alert_rule::{self, ActiveModel, Entity},
    },
    error::{Error, Result},
    pb::{self, RuleStop, test_alert_rule_request::Rule as RequestedRule, test_alert_rule_response::Update},
    rpc::{check, time},
    zones::ZoneSet,
};

/// Progress is sent after this number of events or this time, whichever comes first.
const MAX_EVENTS_BETWEEN_PROGRESS: i64 = 2_000;
const MAX_TIME_BETWEEN_PROGRESS: Duration = Duration::from_secs(1);

/// Running backtest of a rule.
struct Backtest {
    rule: Rule,
    /// Zones at the start of the backtest.
    zones: Arc<ZoneSet>,
    /// Start in microseconds and event id of each cooldown that may still run, by dedup key. Empty
    /// for a rule with a key per event.
    cooldowns: HashMap<String, (i64, i64)>,
    events: i64,
    matched: i64,
    would_fire: i64,
    stops: BTreeMap<RuleStop, i64>,
}

impl AlertRules {
    /// Runs a backtest as a stream. Events are read as fast as the client reads the stream.
    pub(crate) async fn backtest(
        &self,
        request: pb::TestAlertRuleRequest,
    ) -> Result<impl Stream<Item = Result<pb::TestAlertRuleResponse, Status>> + Send + use<>> {
        let (start, end) = time::bounds("started_at", request.started_at)?;
        let start = start.ok_or_else(|| Error::invalid("started_at.start", "is required"))?;
        let end = end.ok_or_else(|| Error::invalid("started_at.end", "is required"))?;
        if start == end {
            return Err(Error::invalid("started_at.end", "must be after the start"));
        }
        let camera_ids = check::texts("camera_ids", &request.camera_ids, 1_000, &(1..=64))?;
        let range = EventRange { start, end, camera_ids };
        let requested = check::within("max_results", request.max_results, 0..=i32::MAX)?;
        let max_results = if requested == 0 { i32::MAX } else { requested };
        let row = match request.rule {
            Some(RequestedRule::RuleId(id)) => {
                let id = check::uuid("rule_id", &id)?;
                let stored = Entity::find_by_id(id).one(self.db.reader()).await?;
                row::require(stored, "alert rule", id)?
            }
            Some(RequestedRule::AlertRule(rule)) => self.check_new_rule(rule).await?,
            None => return Err(Error::invalid("rule_id", "or alert_rule is required")),
        };
        let zones = self.rules.zones().current();
        let backtest = Backtest::new(Rule::compile(row)?, zones);
        Ok(backtest.run(self.db.clone(), self.shutdown.clone(), range, max_results))
    }

    /// Validates a rule of the request like a new rule and returns a row that is not stored.
    async fn check_new_rule(&self, rule: pb::AlertRule) -> Result<alert_rule::Model> {
        let rule = legacy::translate(rule)?;
        let row = rule.checked()?;
        refuse_unknown_zones(self.db.reader(), &rule.zone_ids, &[]).await?;
        channels::refuse_unknown(self.db.reader(), &rule, None).await?;
        let now = entity::now();
        let row = ActiveModel {
            id: Set(Uuid::nil()),
            conditions: Set(None),
            created_at: Set(now),
            updated_at: Set(now),
            ..row
        };
        Ok(row.try_into_model()?)
    }
}

impl Backtest {
    fn new(rule: Rule, zones: Arc<ZoneSet>) -> Self {
        Self { rule, zones, cooldowns: HashMap::new(), events: 0, matched: 0, would_fire: 0, stops: BTreeMap::new() }
    }

    /// Streams the backtest. Nothing is read ahead: while the client does not read, the stream only
    /// holds the rest of one page of events.
    fn run(
        mut self,
        db: Db,
        shutdown: CancellationToken,
        range: EventRange,
        max_results: i32,
    ) -> impl Stream<Item = Result<pb::TestAlertRuleResponse, Status>> + Send {
        try_stream! {
            let (mut last, mut sent) = (None, 0);
            let (mut reported_events, mut reported_at) = (0, Instant::now());
            loop {
                let page = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Error::ShuttingDown),
                    page = read_page(&db, &range, last) => page,
                };
                let (events, has_more) = page?;
                for stored_event in events {
                    last = Some((stored_event.event.started_at, stored_event.event.id));
                    if let Some(test_match) = self.evaluate_event(&stored_event)
                        && sent < max_results
                    {
                        sent += 1;
                        yield response(Update::Match(test_match));
                    }
                }
                let Some((reached, _)) = last.filter(|_| has_more) else {
                    break;
                };
                self.drop_expired_cooldowns(reached);
                if self.events - reported_events >= MAX_EVENTS_BETWEEN_PROGRESS || reported_at.elapsed() >= MAX_TIME_BETWEEN_PROGRESS {
                    (reported_events, reported_at) = (self.events, Instant::now());
                    yield response(Update::Progress(self.progress(reached)));
                }
            }
            yield response(Update::Totals(self.totals()));
        }
    }

    /// Evaluates the next event. Returns a match, if any.
    fn evaluate_event(&mut self, stored_event: &StoredEvent) -> Option<pb::AlertRuleTestMatch> {
        self.events += 1;
        let facts = stored_event.facts(self.zones.clone());
        let (object_type, zone_id) = match evaluate::evaluate(&self.rule, &facts) {
            Verdict::Stopped(stop, _) => {
                *self.stops.entry(stop).or_default() += 1;
                return None;
            }
            Verdict::Matches { object_type, zone_id } => (object_type, zone_id),
        };
        self.matched += 1;
        let event = &stored_event.event;
        let dedup_key = self.rule.template.render(&Values {
            camera_id: &event.camera_id,
            rule_id: self.rule.id,
            object_type,
            zone_id,
            event_id: event.id,
        });
        let cooldown_event_id = self.claim(&dedup_key, event.started_at, event.id);
        if cooldown_event_id.is_none() {
            self.would_fire += 1;
        }
        Some(pb::AlertRuleTestMatch {
            event_id: event.id,
            camera_id: event.camera_id.clone(),
            started_at: Some(time::to_proto(event.started_at)),
            risk_score: event.risk_score,
            dedup_key,
            object_type: object_type.map(Into::into),
            zone_id: zone_id.map(Into::into),
            would_fire: cooldown_event_id.is_none(),
            cooldown_event_id,
        })
    }

    /// Returns the event that owns a running cooldown of `key`. Starts a cooldown for the given
    /// event if none is running.
    fn claim(&mut self, key: &str, started_at: DateTime<Utc>, event_id: i64) -> Option<i64> {
        if self.rule.cooldown_us == 0 || self.rule.template.is_per_event() {
            return None;
        }
        let now_us = started_at.timestamp_micros();
        let running =
            self.cooldowns.get(key).copied().filter(|(start_us, _)| start_us + self.rule.cooldown_us > now_us);
        if running.is_none() {
            self.cooldowns.insert(key.to_string(), (now_us, event_id));
        }
        running.map(|(_, event_id)| event_id)
    }

    /// Drops cooldowns that end before all remaining events.
    fn drop_expired_cooldowns(&mut self, reached: DateTime<Utc>) {
        let (cooldown_us, reached_us) = (self.rule.cooldown_us, reached.timestamp_micros());
        self.cooldowns.retain(|_, (start_us, _)| *start_us + cooldown_us > reached_us);
    }

    fn progress(&self, reached: DateTime<Utc>) -> pb::AlertRuleTestProgress {
        pb::AlertRuleTestProgress {
            events: self.events,
            matched: self.matched,
            would_fire: self.would_fire,
            reached: Some(time::to_proto(reached)),
        }
    }

    fn totals(&self) -> pb::AlertRuleTestTotals {
        let stops =
            self.stops.iter().map(|(stop, events)| pb::RuleStopCount { stopped_by: (*stop).into(), events: *events });
        pb::AlertRuleTestTotals {
            events: self.events,
            matched: self.matched,
            would_fire: self.would_fire,
            suppressed: self.matched - self.would_fire,
            stops: stops.collect(),
        }
    }
}

/// Reads the next page of events. Each page takes its own scan permit, because a slow client must
/// not keep others waiting.
async fn read_page(
    db: &Db,
    range: &EventRange,
    last: Option<(DateTime<Utc>, i64)>,
) -> Result<(Vec<StoredEvent>, bool)> {
    let scan = db.scan().await?;
    range.page(scan.reader(), last).await
}

fn response(update: Update) -> pb::TestAlertRuleResponse {
    pb::TestAlertRuleResponse { update: Some(update) }
}
