//! Judges histories against what is stored.

use std::collections::{HashMap, HashSet};

use super::{
    history::{History, Step, What},
    subscribers::Wants,
    truth::Truth,
};

/// How far the number of lost changes may be off: by what transactions beside each other wrote.
const AT_THE_SAME_TIME: i64 = 64;

/// What is known of every change that any subscriber was sent: its transaction, and its place in it.
struct Order<'a> {
    commits: HashMap<&'a What, i64>,
}

/// Returns what should not have happened, for people.
pub fn judge(truth: &Truth, histories: &[History]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut order = Order { commits: HashMap::new() };
    for history in histories {
        for sent in history.sent() {
            let known = *order.commits.entry(&sent.what).or_insert(sent.commit);
            if known != sent.commit {
                let (what, commit) = (&sent.what, sent.commit);
                violations.push(format!("{}: {what:?} is of commit {commit}, for others of {known}", history.name));
            }
        }
    }
    same_order(histories, &mut violations);
    for history in histories {
        let mut found = history.complaints.clone();
        if history.gave_up {
            found.push("did not get to the end".into());
        }
        unique(history, &mut found);
        commits(history, &mut found);
        versions(history, &mut found);
        filtered(truth, history, &mut found);
        if history.wants == Wants::Snapshot {
            snapshot(truth, history, &mut found);
        } else {
            complete(truth, history, &order, &mut found);
        }
        let name = &history.name;
        violations.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    violations
}

/// Two subscribers see what both see in one order.
fn same_order(histories: &[History], violations: &mut Vec<String>) {
    let Some(longest) = histories.iter().max_by_key(|history| history.delivered()) else {
        return;
    };
    let places: HashMap<&What, usize> = longest.sent().enumerate().map(|(at, sent)| (&sent.what, at)).collect();
    for history in histories {
        let mut before = None;
        for sent in history.sent() {
            let Some(at) = places.get(&sent.what) else {
                continue;
            };
            if before.is_some_and(|before| before > at) {
                let what = &sent.what;
                violations.push(format!("{}: {what:?} comes in another order than for {}", history.name, longest.name));
            }
            before = Some(at);
        }
    }
}

fn unique(history: &History, found: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for sent in history.sent() {
        if !seen.insert(&sent.what) {
            found.push(format!("{:?} came twice", sent.what));
        }
    }
}

/// Transactions come in order and whole, and their ends are marked. The rest of one may be pruned.
fn commits(history: &History, found: &mut Vec<String>) {
    for steps in history.steps.split(|step| matches!(step, Step::FellOut(_))) {
        for pair in steps.windows(2) {
            let [Step::Sent(one), Step::Sent(next)] = pair else {
                continue;
            };
            if next.commit < one.commit {
                found.push(format!("commit {} comes after {}", next.commit, one.commit));
            }
            if one.commit_end != (next.commit != one.commit) {
                let end = one.commit_end;
                found.push(format!("commit_end of {:?} is {end}, and {:?} follows", one.what, next.what));
            }
        }
    }
}

/// The versions of an alert come one after the other.
fn versions(history: &History, found: &mut Vec<String>) {
    let mut versions: HashMap<&str, i64> = HashMap::new();
    let mut lost = false;
    for step in &history.steps {
        let Step::Sent(sent) = step else {
            lost = true;
            continue;
        };
        let What::Alert(id, version) = &sent.what else {
            continue;
        };
        let before = versions.insert(id, *version);
        let follows = before.is_none_or(|before| *version == before + 1 || lost && *version > before);
        if !follows {
            found.push(format!("alert {id} came as {version} after {before:?}"));
        }
    }
}

/// What came is stored, and is what the subscriber wants.
fn filtered(truth: &Truth, history: &History, found: &mut Vec<String>) {
    for sent in history.sent() {
        let (alert, stored) = match &sent.what {
            What::Event(id) => (None, truth.events.contains_key(id)),
            What::Alert(id, version) => {
                let alert = truth.alerts.get(id);
                (alert, alert.is_some_and(|alert| *version <= alert.version))
            }
        };
        if !stored {
            found.push(format!("{:?} came, and is not stored", sent.what));
        } else if !history.wants.wants(&sent.what, alert) {
            found.push(format!("{:?} came, and is not wanted", sent.what));
        }
    }
}

/// Everything that is stored and wanted came, but for what was pruned before it was read.
fn complete(truth: &Truth, history: &History, order: &Order, found: &mut Vec<String>) {
    let seen: HashSet<_> = history.sent().map(|sent| &sent.what).collect();
    let mut gaps = gaps(history);
    for what in truth.all() {
        let alert = match &what {
            What::Alert(id, _) => truth.alerts.get(id),
            What::Event(_) => None,
        };
        if seen.contains(&what) || !history.wants.wants(&what, alert) {
            continue;
        }
        // What nobody was sent can have been pruned before anybody read it.
        let in_a_gap = match order.commits.get(&what) {
            Some(commit) => gaps.iter_mut().find(|gap| (gap.after..=gap.before).contains(commit)),
            None => gaps.first_mut(),
        };
        match in_a_gap {
            Some(gap) => gap.missing += 1,
            None => found.push(format!("{what:?} never came")),
        }
    }
    for gap in gaps {
        if gap.missing > gap.told + AT_THE_SAME_TIME {
            found.push(format!("was told that {} changes are lost, and misses {}", gap.told, gap.missing));
        }
    }
}

/// What a subscriber was told is gone.
struct Gap {
    /// The commit before it,
    after: i64,
    /// and the one behind it.
    before: i64,
    told: i64,
    missing: i64,
}

fn gaps(history: &History) -> Vec<Gap> {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut last = i64::MIN;
    for step in &history.steps {
        match step {
            Step::Sent(sent) => {
                last = sent.commit;
                for gap in gaps.iter_mut().filter(|gap| gap.before == i64::MAX) {
                    gap.before = sent.commit;
                }
            }
            Step::FellOut(told) => match gaps.last_mut() {
                // Nothing came since.
                Some(gap) if gap.before == i64::MAX => gap.told += told,
                _ => gaps.push(Gap { after: last, before: i64::MAX, told: *told, missing: 0 }),
            },
        }
    }
    gaps
}

/// After a snapshot comes what it does not hold, up to what is stored.
fn snapshot(truth: &Truth, history: &History, found: &mut Vec<String>) {
    let Some(snapshot) = &history.snapshot else {
        found.push("never got a snapshot".into());
        return;
    };
    let mut known: HashMap<&str, i64> = HashMap::new();
    for (id, version) in snapshot {
        if known.insert(id, *version).is_some() {
            found.push(format!("alert {id} is in the snapshot twice"));
        }
    }
    let in_snapshot = known.clone();
    let lost = history.fallen_out() > 0;
    for sent in history.sent() {
        let What::Alert(id, version) = &sent.what else {
            continue;
        };
        let before = known.insert(id, *version);
        if in_snapshot.contains_key(id.as_str()) {
            let before = before.unwrap_or_default();
            if *version <= before || (*version != before + 1 && !lost) {
                found.push(format!("alert {id} came as {version} after {before}"));
            }
        }
    }
    if lost {
        return;
    }
    for (id, alert) in &truth.alerts {
        // One that was acknowledged before, and not touched again, is in neither.
        let expected = [Some(&alert.version), None];
        let came_to = known.get(id.as_str());
        let known_to_be_open = in_snapshot.contains_key(id.as_str()) || alert.version == 1;
        if !expected.contains(&came_to) || (known_to_be_open && came_to.is_none()) {
            let version = alert.version;
            found.push(format!("alert {id} is at {version}, and came to {came_to:?}"));
        }
    }
}

#[cfg(test)]
mod tests;
