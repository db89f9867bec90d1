//! Flapping. A rule above its limit raises one marked alert per window and suppresses the rest.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement, Value, sea_query::LockType,
};
use uuid::Uuid;

use crate::{
    entity::{alert, alert_rule},
    error::{Error, Result},
};

/// Largest number of rules per statement.
const MAX_RULES_PER_STATEMENT: usize = 200;

/// Limit on the alerts of a rule per window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlapLimit {
    /// Number of alerts per window that are raised unmarked, at least 1.
    pub threshold: i32,
    pub window_seconds: i32,
}

/// Alert that a rule is about to raise.
#[derive(Debug, Clone, Copy)]
pub struct Firing {
    pub rule_id: Uuid,
    pub limit: FlapLimit,
    /// Id of the alert, if raised.
    pub alert_id: Uuid,
    /// Time in microseconds since the Unix epoch.
    pub at_us: i64,
}

/// Decision about an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Raise the alert.
    Raise,
    /// Raise the alert, marked as flapping. The alert represents all further alerts of the window.
    Mark,
    /// Suppress the alert. The marked alert with this id represents the alert.
    Suppress(Uuid),
}

/// State of the latest window of a rule.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// Start in microseconds since the Unix epoch.
    started_at_us: i64,
    /// Number of alerts in the window, including suppressed alerts. 0 before the first window.
    matches: i64,
    /// Marked alert of the window, if any.
    alert_id: Option<Uuid>,
}

impl FlapLimit {
    /// Returns the limit of a rule. Values below 1, possibly from another program, become 1.
    pub fn of(rule: &alert_rule::Model) -> Option<Self> {
        Some(Self { threshold: rule.flap_threshold?.max(1), window_seconds: rule.flap_window_seconds?.max(1) })
    }

    /// Adds the flapping limit to the metadata of an alert.
    pub fn mark(self, alert: &mut alert::Model) {
        let metadata = alert.metadata.get_or_insert_with(|| serde_json::json!({}));
        metadata["flapping"] = true.into();
        metadata["flap_threshold"] = self.threshold.into();
        metadata["flap_window_seconds"] = self.window_seconds.into();
    }
}

impl fmt::Display for FlapLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (alerts, seconds) = (self.threshold, self.window_seconds);
        write!(f, "the rule flaps: more than {alerts} alerts in {seconds} s")
    }
}

impl Window {
    /// Counts an alert in the window and decides about the alert.
    fn count(&mut self, firing: &Firing) -> Decision {
        let threshold = i64::from(firing.limit.threshold);
        let length = i64::from(firing.limit.window_seconds) * 1_000_000;
        // A window with a start in the future, from a wrong clock, restarts now with its own
        // length.
        self.started_at_us = self.started_at_us.min(firing.at_us);
        let end = self.started_at_us.saturating_add(length);
        if self.matches == 0 || firing.at_us >= end {
            // After a gap of one window length without matches, the rule no longer flaps.
            let follows_at_once = firing.at_us < end.saturating_add(length);
            let damped = self.matches > threshold && follows_at_once;
            *self = Self { started_at_us: firing.at_us, matches: 1, alert_id: damped.then_some(firing.alert_id) };
            return if damped { Decision::Mark } else { Decision::Raise };
        }
        self.matches += 1;
        match self.alert_id {
            Some(marked_id) => Decision::Suppress(marked_id),
            None if self.matches <= threshold => Decision::Raise,
            None => {
                self.alert_id = Some(firing.alert_id);
                Decision::Mark
            }
        }
    }
}

/// Counts alerts in order and returns the decision of each by alert id. Locks the windows of the
/// rules, so that all processes share the count. Cooldowns must be claimed before.
pub async fn decide(tx: &DatabaseTransaction, firings: &[Firing]) -> Result<HashMap<Uuid, Decision>> {
    if firings.is_empty() {
        return Ok(HashMap::new());
    }
    // A fixed order avoids deadlocks.
    let mut windows: BTreeMap<_, _> = firings.iter().map(|firing| (firing.rule_id, Window::default())).collect();
    lock_windows(tx, &mut windows).await?;
    let mut decisions = HashMap::with_capacity(firings.len());
    for firing in firings {
        let window = windows.entry(firing.rule_id).or_default();
        decisions.insert(firing.alert_id, window.count(firing));
    }
    save_windows(tx, &windows).await?;
    Ok(decisions)
}

/// Moves cooldown repeats of suppressed alerts to the marked alerts that represent them.
pub(crate) fn redirect_repeats(
    repeats: BTreeMap<Uuid, i64>,
    decisions: &HashMap<Uuid, Decision>,
) -> BTreeMap<Uuid, i64> {
    let mut redirected = BTreeMap::new();
    for (id, count) in repeats {
        let target = match decisions.get(&id) {
            Some(Decision::Suppress(marked)) => *marked,
            Some(Decision::Raise | Decision::Mark) | None => id,
        };
        *redirected.entry(target).or_default() += count;
    }
    redirected
}

/// Locks and reads the windows of the rules. Creates missing rows.
async fn lock_windows(tx: &DatabaseTransaction, windows: &mut BTreeMap<Uuid, Window>) -> Result<()> {
    let rule_ids: Vec<_> = windows.keys().copied().collect();
    for rule_ids in rule_ids.chunks(MAX_RULES_PER_STATEMENT) {
        lock_rules(tx, rule_ids).await?;
        let rows: Vec<_> = (1..=rule_ids.len()).map(|number| format!("(${number})")).collect();
        let sql = format!(
            "INSERT INTO alert_flaps AS f (rule_id) VALUES {} \
             ON CONFLICT (rule_id) DO UPDATE SET matches = f.matches \
             RETURNING rule_id, window_started_at_us, matches, alert_id",
            rows.join(", ")
        );
        let values = rule_ids.iter().map(|id| Value::from(*id));
        let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
        for row in tx.query_all_raw(statement).await? {
            let rule_id: Uuid = row.try_get("", "rule_id")?;
            let window =
                windows.get_mut(&rule_id).ok_or_else(|| Error::internal("a row of a rule outside the query"))?;
            *window = Window {
                started_at_us: row.try_get("", "window_started_at_us")?,
                matches: row.try_get("", "matches")?,
                alert_id: row.try_get("", "alert_id")?,
            };
        }
    }
    Ok(())
}

/// Locks the rules against deletion. Deleting a rule locks the rule first, then its window. This
/// function locks in the same order to avoid deadlocks.
async fn lock_rules(tx: &DatabaseTransaction, rule_ids: &[Uuid]) -> Result<()> {
    let rules = alert_rule::Entity::find()
        .select_only()
        .column(alert_rule::Column::Id)
        .filter(alert_rule::Column::Id.is_in(rule_ids.iter().copied()))
        .order_by_asc(alert_rule::Column::Id)
        .lock(LockType::KeyShare);
    // SQLite has one writer, so that no lock is needed.
    if tx.get_database_backend() == DbBackend::Postgres {
        rules.into_tuple::<Uuid>().all(tx).await?;
    }
    Ok(())
}

/// Stores the windows.
async fn save_windows(tx: &DatabaseTransaction, windows: &BTreeMap<Uuid, Window>) -> Result<()> {
    let entries: Vec<_> = windows.iter().collect();
    for chunk in entries.chunks(MAX_RULES_PER_STATEMENT) {
        let mut rows = Vec::with_capacity(chunk.len());
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * 4);
        for (rule_id, window) in chunk {
            let n = values.len();
            rows.push(format!("(${}, ${}, ${}, ${})", n + 1, n + 2, n + 3, n + 4));
            values.extend([
                (**rule_id).into(),
                window.started_at_us.into(),
                window.matches.into(),
                window.alert_id.into(),
            ]);
        }
        let sql = format!(
            "INSERT INTO alert_flaps (rule_id, window_started_at_us, matches, alert_id) VALUES {} \
             ON CONFLICT (rule_id) DO UPDATE SET window_started_at_us = excluded.window_started_at_us, \
             matches = excluded.matches, alert_id = excluded.alert_id",
            rows.join(", ")
        );
        let backend = tx.get_database_backend();
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs alerts at the given seconds with a window of ten seconds. Results: `r` raised, `M`
    /// raised and marked, `.` suppressed.
    fn run(threshold: i32, seconds: &[i64]) -> String {
        run_with(&mut Window::default(), threshold, seconds)
    }

    fn run_with(window: &mut Window, threshold: i32, seconds: &[i64]) -> String {
        let mut marked = window.alert_id;
        let decide = |at: &i64| {
            let firing = Firing {
                rule_id: Uuid::nil(),
                limit: FlapLimit { threshold, window_seconds: 10 },
                alert_id: Uuid::now_v7(),
                at_us: at * 1_000_000,
            };
            match window.count(&firing) {
                Decision::Raise => 'r',
                Decision::Mark => {
                    marked = Some(firing.alert_id);
                    'M'
                }
                Decision::Suppress(marked_id) => {
                    assert_eq!(Some(marked_id), marked);
                    '.'
                }
            }
        };
        seconds.iter().map(decide).collect()
    }

    #[test]
    fn a_window_has_so_many_alerts_and_one_that_says_so() {
        for (threshold, seconds, expected) in [
            (1, &[100][..], "r"),
            (1, &[100, 100, 100], "rM."),
            (3, &[100, 101, 102], "rrr"),
            (3, &[100, 101, 102, 103, 104, 109], "rrrM.."),
            // The window ends ten seconds after its start, not after the last alert.
            (3, &[100, 105, 109, 110, 111], "rrrrr"),
            (3, &[100, 105, 109, 110, 111, 112, 113, 114], "rrrrrrM."),
            // A window starts with an alert.
            (2, &[100, 119, 120, 121], "rrrM"),
        ] {
            assert_eq!(run(threshold, seconds), expected, "{threshold} {seconds:?}");
        }
    }

    #[test]
    fn a_window_after_one_that_flapped_begins_damped() {
        for (threshold, seconds, expected) in [
            (1, &[100, 101, 110, 111, 112][..], "rMM.."),
            // A gap as long as a window ends the flapping.
            (1, &[100, 101, 119, 120], "rMM."),
            (1, &[100, 101, 120, 121], "rMrM"),
            // Flapping continues over windows that start at 100, 110, 121 and 131.
            (2, &[100, 100, 100, 110, 111, 112, 121, 122, 123, 131, 132, 133], "rrMM..M..M.."),
            // A damped window with at most the threshold of alerts ends the damping.
            (2, &[100, 100, 100, 110, 111, 120, 121, 122], "rrMM.rrM"),
            (2, &[100, 100, 100, 110, 120, 121, 122, 123], "rrMMrrM."),
            (2, &[100, 100, 100, 110, 111, 112, 120, 130, 131], "rrMM..Mrr"),
        ] {
            assert_eq!(run(threshold, seconds), expected, "{threshold} {seconds:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_neither_ends_nor_prolongs_a_window() {
        assert_eq!(run(2, &[100, 95, 101, 97, 104]), "rrM..");
        assert_eq!(run(2, &[100, 50, 55, 59, 61]), "rrM.M");
    }

    #[test]
    fn another_threshold_holds_for_the_window_under_way() {
        let mut window = Window::default();
        assert_eq!(run_with(&mut window, 5, &[100, 101, 102]), "rrr");
        assert_eq!(run_with(&mut window, 2, &[103, 104]), "M.");
        // A marked window stays marked until its end.
        assert_eq!(run_with(&mut window, 9, &[105, 106, 110, 111]), "..rr");
    }

    #[test]
    fn windows_are_those_of_a_slow_count_from_the_start() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let threshold = random.i32(1..5);
            let mut at = 0;
            let seconds: Vec<_> = (0..random.usize(1..60))
                .map(|_| {
                    at += [0, 1, 2, 5, 11, 25][random.usize(0..6)];
                    at
                })
                .collect();
            let expected = slow(threshold, &seconds);
            assert_eq!(run(threshold, &seconds), expected, "{threshold} {seconds:?}");
        }
    }

    /// Reference implementation: splits the alerts into windows first.
    fn slow(threshold: i32, seconds: &[i64]) -> String {
        let threshold = usize::try_from(threshold).unwrap();
        let mut windows: Vec<Vec<i64>> = Vec::new();
        for at in seconds {
            match windows.last_mut() {
                Some(window) if *at < window[0] + 10 => window.push(*at),
                _ => windows.push(vec![*at]),
            }
        }
        let mut outcome = String::new();
        for (n, window) in windows.iter().enumerate() {
            let before = n.checked_sub(1).map(|n| &windows[n]);
            let damped = before.is_some_and(|before| before.len() > threshold && window[0] - (before[0] + 10) < 10);
            let raised = if damped { 0 } else { threshold };
            for place in 0..window.len() {
                outcome.push(match place {
                    place if place < raised => 'r',
                    place if place == raised => 'M',
                    _ => '.',
                });
            }
        }
        outcome
    }
}
