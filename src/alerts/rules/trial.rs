//! `TestAlertRule`: what a rule would have done in the past.

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
    past::{PastEvent, Range},
    service::{AlertRules, refuse_unknown_zones},
};
use crate::{
    alerts::engine::{
        judge::{self, Verdict},
        live::Rule,
        template::Values,
    },
    db::{Db, row},
    entity::{
        self,
        alert_rule::{self, ActiveModel, Entity},
    },
    error::{Error, Result},
    pb::{self, RuleStop, test_alert_rule_request::Rule as Of, test_alert_rule_response::Update},
    rpc::{check, time},
    zones::ZoneSet,
};

/// After how many events, and after how long, the client is told how far it is.
const EVERY: i64 = 2_000;
const QUIET: Duration = Duration::from_secs(1);

/// A rule that is being tried.
struct Trial {
    rule: Rule,
    /// Those of the beginning.
    zones: Arc<ZoneSet>,
    /// For every key whose cooldown may still run, when it began, in microseconds, and for which event.
    /// Without any where every event has a key of its own.
    standing: HashMap<String, (i64, i64)>,
    events: i64,
    matched: i64,
    would_fire: i64,
    stops: BTreeMap<RuleStop, i64>,
}

impl AlertRules {
    /// What a rule would have done, as a stream that reads on as the client does.
    pub(crate) async fn trial(
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
        let range = Range {
            start,
            end,
            camera_ids,
        };
        let most = check::within("max_results", request.max_results, 0..=i32::MAX)?;
        let most = if most == 0 { i32::MAX } else { most };
        let row = match request.rule {
            Some(Of::RuleId(id)) => {
                let id = check::uuid("rule_id", &id)?;
                let row = Entity::find_by_id(id).one(self.db.reader()).await?;
                row::require(row, "alert rule", id)?
            }
            Some(Of::AlertRule(rule)) => self.not_stored(rule).await?,
            None => return Err(Error::invalid("rule_id", "or alert_rule is required")),
        };
        let zones = self.rules.zones().current();
        let trial = Trial::new(Rule::compile(row)?, zones);
        Ok(trial.run(self.db.clone(), self.shutdown.clone(), range, most))
    }

    /// The row of a rule that is not stored, checked as a new one is.
    async fn not_stored(&self, rule: pb::AlertRule) -> Result<alert_rule::Model> {
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

impl Trial {
    fn new(rule: Rule, zones: Arc<ZoneSet>) -> Self {
        Self {
            rule,
            zones,
            standing: HashMap::new(),
            events: 0,
            matched: 0,
            would_fire: 0,
            stops: BTreeMap::new(),
        }
    }

    /// Nothing is read ahead: while the client does not read, this is not polled, and it holds what is left of
    /// a page of events.
    fn run(
        mut self,
        db: Db,
        shutdown: CancellationToken,
        range: Range,
        most: i32,
    ) -> impl Stream<Item = Result<pb::TestAlertRuleResponse, Status>> + Send {
        try_stream! {
            let (mut last, mut sent) = (None, 0);
            let (mut told, mut told_at) = (0, Instant::now());
            loop {
                let page = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => Err(Error::ShuttingDown),
                    page = page(&db, &range, last) => page,
                };
                let (events, more) = page?;
                for past in events {
                    last = Some((past.event.started_at, past.event.id));
                    if let Some(found) = self.judge(&past)
                        && sent < most
                    {
                        sent += 1;
                        yield response(Update::Match(found));
                    }
                }
                let Some((reached, _)) = last.filter(|_| more) else {
                    break;
                };
                self.forget(reached);
                if self.events - told >= EVERY || told_at.elapsed() >= QUIET {
                    (told, told_at) = (self.events, Instant::now());
                    yield response(Update::Progress(self.progress(reached)));
                }
            }
            yield response(Update::Totals(self.totals()));
        }
    }

    /// What the rule would have done at an event that follows those before.
    fn judge(&mut self, past: &PastEvent) -> Option<pb::AlertRuleTestMatch> {
        self.events += 1;
        let facts = past.facts(self.zones.clone());
        let (object_type, zone_id) = match judge::judge(&self.rule, &facts) {
            Verdict::Stopped(stop, _) => {
                *self.stops.entry(stop).or_default() += 1;
                return None;
            }
            Verdict::Matches {
                object_type,
                zone_id,
            } => (object_type, zone_id),
        };
        self.matched += 1;
        let event = &past.event;
        let dedup_key = self.rule.template.render(&Values {
            camera_id: &event.camera_id,
            rule_id: self.rule.id,
            object_type,
            zone_id,
            event_id: event.id,
        });
        let held_by = self.claim(&dedup_key, event.started_at, event.id);
        if held_by.is_none() {
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
            would_fire: held_by.is_none(),
            cooldown_event_id: held_by,
        })
    }

    /// The event whose alert holds this one back; without one this one's cooldown begins.
    fn claim(&mut self, key: &str, at: DateTime<Utc>, event_id: i64) -> Option<i64> {
        if self.rule.cooldown_us == 0 || self.rule.template.is_per_event() {
            return None;
        }
        let at = at.timestamp_micros();
        let standing = self.standing.get(key).copied();
        let standing = standing.filter(|(began, _)| began + self.rule.cooldown_us > at);
        if standing.is_none() {
            self.standing.insert(key.to_string(), (at, event_id));
        }
        standing.map(|(_, event_id)| event_id)
    }

    /// Forgets cooldowns that are over for all events to come.
    fn forget(&mut self, reached: DateTime<Utc>) {
        let (cooldown, reached) = (self.rule.cooldown_us, reached.timestamp_micros());
        self.standing
            .retain(|_, (began, _)| *began + cooldown > reached);
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
        let stops = self.stops.iter().map(|(stop, events)| pb::RuleStopCount {
            stopped_by: (*stop).into(),
            events: *events,
        });
        pb::AlertRuleTestTotals {
            events: self.events,
            matched: self.matched,
            would_fire: self.would_fire,
            suppressed: self.matched - self.would_fire,
            stops: stops.collect(),
        }
    }
}

/// The next page of events. Each has a turn of its own: the client may be slow to read, and others take turns too.
async fn page(
    db: &Db,
    range: &Range,
    last: Option<(DateTime<Utc>, i64)>,
) -> Result<(Vec<PastEvent>, bool)> {
    let scan = db.scan().await?;
    range.page(scan.reader(), last).await
}

fn response(update: Update) -> pb::TestAlertRuleResponse {
    pb::TestAlertRuleResponse {
        update: Some(update),
    }
}
