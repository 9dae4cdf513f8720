//! What became of the cases of a suite.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;

use super::{Case, Expect, Schema};

/// One case. All texts are empty until they are known.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// SQLSTATE, message and hint of the refused creation.
    pub refused: Option<String>,
    pub mode: String,
    pub reason: String,
    pub status: String,
    pub error: String,
    /// The first wrong answer: when and how.
    pub wrong: Option<String>,
    /// Contents that were compared, each as its number of rows and a hash.
    pub contents: BTreeSet<(i64, i64)>,
}

/// All cases of a suite, in their order.
#[derive(Debug, Clone)]
pub struct Report {
    pub cases: Vec<Case>,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn new(cases: &[Case]) -> Report {
        Report { cases: cases.to_vec(), outcomes: vec![Outcome::default(); cases.len()] }
    }

    fn pairs(&self) -> impl Iterator<Item = (&Case, &Outcome)> {
        self.cases.iter().zip(&self.outcomes)
    }

    /// Cases with right answers; those that are expected to be refused count as right when they are.
    pub fn right(&self) -> usize {
        self.pairs().filter(|(c, o)| o.wrong.is_none() && (o.refused.is_none() || refusal(c))).count()
    }

    /// Cases that are maintained.
    pub fn incremental(&self) -> usize {
        self.outcomes.iter().filter(|o| o.mode == "DIFFERENTIAL").count()
    }

    /// `right n/m, incremental k/m`.
    pub fn summary(&self) -> String {
        let all = self.cases.len();
        format!("right {}/{all}, incremental {}/{all}", self.right(), self.incremental())
    }

    /// Reasons for recomputation or refusal with the cases they concern.
    pub fn reasons(&self) -> BTreeMap<String, Vec<&'static str>> {
        let mut reasons: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
        for (case, outcome) in self.pairs() {
            let reason = match &outcome.refused {
                Some(message) => format!("refused: {message}"),
                None if outcome.mode == "FULL" => outcome.reason.clone(),
                None => continue,
            };
            reasons.entry(reason).or_default().push(case.name);
        }
        reasons
    }

    /// Appends the summary, the reasons with their counts, and wrong answers to the file that `PGTRICKLE_SQL_REASONS`
    /// names.
    pub fn note(&self, schema: &Schema) {
        let Some(file) = std::env::var_os("PGTRICKLE_SQL_REASONS") else { return };
        let mut reasons: Vec<_> = self.reasons().into_iter().collect();
        reasons.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
        let mut text = format!("== {}: {}\n", schema.name, self.summary());
        for (reason, names) in reasons {
            let _ = writeln!(text, "{:4}  {reason}\n      {}", names.len(), names.join(" "));
        }
        for (case, outcome) in self.pairs() {
            if let Some(wrong) = &outcome.wrong {
                let _ = writeln!(text, "WRONG {} ({}): {wrong}", case.name, outcome.mode);
            }
        }
        let file = std::fs::File::options().create(true).append(true).open(file);
        file.expect("the file of reasons").write_all(text.as_bytes()).expect("the reasons are written");
    }

    /// Everything that is not as expected, with the query.
    pub fn complaints(&self) -> Vec<String> {
        self.pairs().flat_map(|(c, o)| complaint(c, o)).collect()
    }
}

/// Answers that show little: none had a row, or all were the same. Those that can't be otherwise are in `idle.txt`.
/// The scripts are made for the usual seed; what another one changes is left to chance.
fn idle(case: &Case, outcome: &Outcome) -> Option<String> {
    if std::env::var_os("PGTRICKLE_SQL_SEED").is_some() {
        return None;
    }
    if outcome.wrong.is_some() || outcome.contents.is_empty() || listed(include_str!("idle.txt"), case.name) {
        return None;
    }
    let rows = outcome.contents.iter().map(|(rows, _)| *rows).max().unwrap_or_default();
    match (rows, outcome.contents.len()) {
        (0, _) => Some("never had a row".to_owned()),
        (_, 1) => Some("never changed".to_owned()),
        _ => None,
    }
}

/// Whether a list names the case, one name a line; `#` begins a comment.
pub fn listed(list: &str, name: &str) -> bool {
    list.lines().filter_map(|line| line.split('#').next()).any(|line| line.trim() == name)
}

fn refusal(case: &Case) -> bool {
    matches!(case.expect, Expect::Refused(_))
}

fn complaint(case: &Case, outcome: &Outcome) -> Option<String> {
    let Outcome { mode, reason, .. } = outcome;
    let what = match (&outcome.refused, case.expect) {
        (Some(message), Expect::Refused(part)) if message.contains(part) => None,
        (Some(message), _) => Some(format!("refused: {message}")),
        (None, Expect::Refused(part)) => Some(format!("was not refused with {part:?}")),
        (None, Expect::Incremental) if mode != "DIFFERENTIAL" => Some(format!("is {mode}: {reason}")),
        (None, Expect::Full(part) | Expect::Volatile(part)) if mode != "FULL" || !reason.contains(part) => {
            Some(format!("is {mode} ({reason}), not FULL with {part:?}"))
        }
        _ => None,
    };
    let what = [what, outcome.wrong.clone(), idle(case, outcome)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n    ");
    (!what.is_empty()).then(|| format!("- {}: {what}\n    {}", case.name, case.query))
}
