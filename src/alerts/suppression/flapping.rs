//! Rules that fire too often: of the alerts of a window, only so many are raised, then one that stands for
//! the rest.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Statement, Value, sea_query::LockType,
};
use uuid::Uuid;

use crate::{
    entity::{alert, alert_rule},
    error::{Error, Result},
};

/// How many rules one statement is about.
const ROWS: usize = 200;

/// How often a rule may fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flap {
    /// How many alerts of a window are raised as ever; at least 1.
    pub threshold: i32,
    pub window_seconds: i32,
}

/// An alert that a rule wants to raise.
#[derive(Debug, Clone, Copy)]
pub struct Firing {
    pub rule_id: Uuid,
    pub flap: Flap,
    /// The id that the alert will have.
    pub alert_id: Uuid,
    /// In microseconds since 1970.
    pub at_us: i64,
}

/// What becomes of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is raised as ever.
    Raise,
    /// It is raised, says that the rule flaps, and stands for those that follow.
    Mark,
    /// It is held back; this alert stands for it.
    Hold(Uuid),
}

/// What is known of the last window of a rule.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// In microseconds since 1970.
    started_at_us: i64,
    /// How many alerts the rule wanted to raise in it. 0: there was none yet.
    matches: i64,
    /// The alert that stands for those that are held back.
    alert_id: Option<Uuid>,
}

impl Flap {
    /// What a rule says. What another program may have written is kept within reason.
    pub fn of(rule: &alert_rule::Model) -> Option<Self> {
        Some(Self {
            threshold: rule.flap_threshold?.max(1),
            window_seconds: rule.flap_window_seconds?.max(1),
        })
    }

    /// Has an alert say that its rule flaps.
    pub fn mark(self, alert: &mut alert::Model) {
        let metadata = alert.metadata.get_or_insert_with(|| serde_json::json!({}));
        metadata["flapping"] = true.into();
        metadata["flap_threshold"] = self.threshold.into();
        metadata["flap_window_seconds"] = self.window_seconds.into();
    }
}

impl fmt::Display for Flap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (alerts, seconds) = (self.threshold, self.window_seconds);
        write!(
            f,
            "the rule flaps: more than {alerts} alerts in {seconds} s"
        )
    }
}

impl Window {
    /// Counts an alert, and says what becomes of it.
    fn count(&mut self, firing: &Firing) -> Decision {
        let threshold = i64::from(firing.flap.threshold);
        let length = i64::from(firing.flap.window_seconds) * 1_000_000;
        // A window that a wrong clock began in the future begins now, and lasts no longer than its own length.
        self.started_at_us = self.started_at_us.min(firing.at_us);
        let end = self.started_at_us.saturating_add(length);
        if self.matches == 0 || firing.at_us >= end {
            // One window later nothing has matched for as long as a window, which flapped in nothing.
            let follows_at_once = firing.at_us < end.saturating_add(length);
            let damped = self.matches > threshold && follows_at_once;
            *self = Self {
                started_at_us: firing.at_us,
                matches: 1,
                alert_id: damped.then_some(firing.alert_id),
            };
            return if damped {
                Decision::Mark
            } else {
                Decision::Raise
            };
        }
        self.matches += 1;
        match self.alert_id {
            Some(stands) => Decision::Hold(stands),
            None if self.matches <= threshold => Decision::Raise,
            None => {
                self.alert_id = Some(firing.alert_id);
                Decision::Mark
            }
        }
    }
}

/// Counts alerts in their order, and says by their ids what becomes of each. The rows of the rules are
/// locked, so that all processes count together; cooldowns have to be claimed before.
pub async fn decide(
    tx: &DatabaseTransaction,
    firings: &[Firing],
) -> Result<HashMap<Uuid, Decision>> {
    if firings.is_empty() {
        return Ok(HashMap::new());
    }
    // Always in the same order, or two transactions could wait for each other.
    let mut windows: BTreeMap<_, _> = firings
        .iter()
        .map(|firing| (firing.rule_id, Window::default()))
        .collect();
    lock(tx, &mut windows).await?;
    let mut decisions = HashMap::with_capacity(firings.len());
    for firing in firings {
        let window = windows.entry(firing.rule_id).or_default();
        decisions.insert(firing.alert_id, window.count(firing));
    }
    keep(tx, &windows).await?;
    Ok(decisions)
}

/// Repeats within cooldowns, counted on the alerts that stand for them: on others where these are held back.
pub(crate) fn handed_over(
    repeats: BTreeMap<Uuid, i64>,
    decisions: &HashMap<Uuid, Decision>,
) -> BTreeMap<Uuid, i64> {
    let mut handed_over = BTreeMap::new();
    for (id, count) in repeats {
        let stands = match decisions.get(&id) {
            Some(Decision::Hold(other)) => *other,
            Some(Decision::Raise | Decision::Mark) | None => id,
        };
        *handed_over.entry(stands).or_default() += count;
    }
    handed_over
}

/// Locks the rows of these rules, makes those that are not there yet, and reads them.
async fn lock(tx: &DatabaseTransaction, windows: &mut BTreeMap<Uuid, Window>) -> Result<()> {
    let rule_ids: Vec<_> = windows.keys().copied().collect();
    for rule_ids in rule_ids.chunks(ROWS) {
        lock_rules(tx, rule_ids).await?;
        let rows: Vec<_> = (1..=rule_ids.len())
            .map(|number| format!("(${number})"))
            .collect();
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
            let window = windows
                .get_mut(&rule_id)
                .ok_or_else(|| Error::internal("a row that was not asked for"))?;
            *window = Window {
                started_at_us: row.try_get("", "window_started_at_us")?,
                matches: row.try_get("", "matches")?,
                alert_id: row.try_get("", "alert_id")?,
            };
        }
    }
    Ok(())
}

/// Holds the rules where they are. Else whoever deletes one, and has its row, would wait for the row of its window,
/// while who has that waits for the rule that its alerts refer to.
async fn lock_rules(tx: &DatabaseTransaction, rule_ids: &[Uuid]) -> Result<()> {
    let rules = alert_rule::Entity::find()
        .select_only()
        .column(alert_rule::Column::Id)
        .filter(alert_rule::Column::Id.is_in(rule_ids.iter().copied()))
        .order_by_asc(alert_rule::Column::Id)
        .lock(LockType::KeyShare);
    // SQLite has one writer.
    if tx.get_database_backend() == DbBackend::Postgres {
        rules.into_tuple::<Uuid>().all(tx).await?;
    }
    Ok(())
}

/// Writes the rows back.
async fn keep(tx: &DatabaseTransaction, windows: &BTreeMap<Uuid, Window>) -> Result<()> {
    let windows: Vec<_> = windows.iter().collect();
    for windows in windows.chunks(ROWS) {
        let mut rows = Vec::with_capacity(windows.len());
        let mut values: Vec<Value> = Vec::with_capacity(windows.len() * 4);
        for (rule_id, window) in windows {
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
        tx.execute_raw(Statement::from_sql_and_values(backend, sql, values))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alerts at these seconds, with this threshold and a window of ten seconds: `r` is raised, `M` says
    /// that the rule flaps, `.` is held back.
    fn run(threshold: i32, seconds: &[i64]) -> String {
        run_with(&mut Window::default(), threshold, seconds)
    }

    fn run_with(window: &mut Window, threshold: i32, seconds: &[i64]) -> String {
        let mut marked = window.alert_id;
        let decide = |at: &i64| {
            let firing = Firing {
                rule_id: Uuid::nil(),
                flap: Flap {
                    threshold,
                    window_seconds: 10,
                },
                alert_id: Uuid::now_v7(),
                at_us: at * 1_000_000,
            };
            match window.count(&firing) {
                Decision::Raise => 'r',
                Decision::Mark => {
                    marked = Some(firing.alert_id);
                    'M'
                }
                Decision::Hold(stands) => {
                    assert_eq!(Some(stands), marked);
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
            // The window ends ten seconds after it began, not after the last alert.
            (3, &[100, 105, 109, 110, 111], "rrrrr"),
            (3, &[100, 105, 109, 110, 111, 112, 113, 114], "rrrrrrM."),
            // Windows begin with an alert.
            (2, &[100, 119, 120, 121], "rrrM"),
        ] {
            assert_eq!(run(threshold, seconds), expected, "{threshold} {seconds:?}");
        }
    }

    #[test]
    fn a_window_after_one_that_flapped_begins_damped() {
        for (threshold, seconds, expected) in [
            (1, &[100, 101, 110, 111, 112][..], "rMM.."),
            // At the end of the window that would follow at once, one has passed in which nothing matched.
            (1, &[100, 101, 119, 120], "rMM."),
            (1, &[100, 101, 120, 121], "rMrM"),
            // For as long as windows flap; these begin at 100, 110, 121 and 131.
            (
                2,
                &[100, 100, 100, 110, 111, 112, 121, 122, 123, 131, 132, 133],
                "rrMM..M..M..",
            ),
            // A damped window with no more than the threshold is the last one.
            (2, &[100, 100, 100, 110, 111, 120, 121, 122], "rrMM.rrM"),
            (2, &[100, 100, 100, 110, 120, 121, 122, 123], "rrMMrrM."),
            (
                2,
                &[100, 100, 100, 110, 111, 112, 120, 130, 131],
                "rrMM..Mrr",
            ),
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
        // What stands, stands until the window ends.
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
            assert_eq!(
                run(threshold, &seconds),
                expected,
                "{threshold} {seconds:?}"
            );
        }
    }

    /// The same from the rules as they are told: parts the alerts into windows first.
    fn slow(threshold: i32, seconds: &[i64]) -> String {
        let threshold = usize::try_from(threshold).unwrap();
        let mut windows: Vec<Vec<i64>> = Vec::new();
        for at in seconds {
            match windows.last_mut() {
                Some(window) if *at < window[0] + 10 => window.push(*at),
                _ => windows.push(vec![*at]),
            }
        }
        let mut told = String::new();
        for (n, window) in windows.iter().enumerate() {
            let before = n.checked_sub(1).map(|n| &windows[n]);
            let damped = before.is_some_and(|before| {
                before.len() > threshold && window[0] - (before[0] + 10) < 10
            });
            let raised = if damped { 0 } else { threshold };
            for place in 0..window.len() {
                told.push(match place {
                    place if place < raised => 'r',
                    place if place == raised => 'M',
                    _ => '.',
                });
            }
        }
        told
    }
}
