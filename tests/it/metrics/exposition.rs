//! Reads the text format of Prometheus, strictly.

use std::collections::{BTreeMap, HashSet};

/// What a server tells.
#[derive(Debug, Default)]
pub struct Exposition {
    /// By name: the type of the family.
    pub types: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Exposition {
    /// Reads a text. Panics where the format does not allow it.
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line ends");
        let mut all = Self::default();
        let mut seen = HashSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a name and a help");
                assert!(!help.is_empty(), "{line}");
                family = name.into();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert_eq!(name, family, "the type follows the help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let before = all.types.insert(name.into(), kind.into());
                assert_eq!(before, None, "a family comes once: {line}");
            } else {
                let sample = Sample::parse(line);
                let suffixes: &[&str] =
                    if all.types[&family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                let belongs = |suffix: &&str| sample.name == format!("{family}{suffix}");
                assert!(suffixes.iter().any(belongs), "{line} is not of {family}");
                let series = (sample.name.clone(), sample.labels.clone());
                assert!(seen.insert(series), "a series comes once: {line}");
                all.samples.push(sample);
            }
        }
        all
    }

    /// The samples of this name with at least these labels.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let has =
            |sample: &&Sample| sample.name == name && labels.iter().all(|(name, value)| sample.label(name) == *value);
        self.samples.iter().filter(has).collect()
    }

    /// The value of the one sample of this name with these labels.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let all = self.all(name, labels);
        let [sample] = all[..] else { panic!("{name} {labels:?}: {all:?}") };
        sample.value
    }
}

impl Sample {
    /// The value of a label; empty if there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn parse(line: &str) -> Self {
        let end = line.find(['{', ' ']).expect("a value");
        let (name, mut rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                let (label, value) = rest.split_once("=\"").expect("a label");
                assert!(is_name(label), "{line}");
                let (value, after) = unescape(value);
                assert_eq!(labels.insert(label.into(), value), None, "{line}");
                let Some(next) = after.strip_prefix(',') else {
                    rest = after.strip_prefix('}').expect("the end of the labels");
                    break;
                };
                rest = next;
            }
        }
        assert!(is_name(name), "{line}");
        let value = rest.strip_prefix(' ').expect("a space").parse();
        Self { name: name.into(), labels, value: value.expect("a number") }
    }
}

fn is_name(text: &str) -> bool {
    let letter = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    text.starts_with(letter) && text.chars().all(|next| letter(next) || next.is_ascii_digit())
}

/// The value of a label up to its closing quote, and what follows.
fn unescape(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match letters.next().expect("an escaped letter").1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                other => panic!("\\{other} is no escape"),
            }),
            other => value.push(other),
        }
    }
    panic!("a label without an end")
}
