//! What the schema has to be: the documents, and every deliberate difference with its reason.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};

use super::catalogue;
use crate::support::database::Backend;

/// Where the type of a column differs from its document: table, column, the document's
/// type, ours, and why. Numbers that name a row are told by `names_a_row`.
const TYPES: &[(&str, &str, &str, &str, &str)] = &[
    ("gpu_stats", "memory_used", "Integer", "BigInteger", "a size"),
    ("gpu_stats", "memory_total", "Integer", "BigInteger", "a size"),
    ("gpu_stats", "bar1_used", "Integer", "BigInteger", "a size"),
    ("gpu_stats", "throttle_reasons", "Integer", "BigInteger", "NVML's mask has 64 bits"),
    ("gpu_stats", "pcie_replay_counter", "Integer", "BigInteger", "it counts for years"),
    ("gpu_stats", "pcie_tx_throughput", "Integer", "BigInteger", "NVML's number is unsigned"),
    ("gpu_stats", "pcie_rx_throughput", "Integer", "BigInteger", "NVML's number is unsigned"),
    ("export_jobs", "output_size_bytes", "Integer", "BigInteger", "files pass 2 GiB"),
    ("backup_jobs", "file_size_bytes", "Integer", "BigInteger", "files pass 2 GiB"),
    ("logs", "event_id", "Integer", "BigInteger", "it names an event"),
    ("logs", "detection_id", "Integer", "BigInteger", "it names a detection"),
    ("jobs", "id", "String(36)", "UUID", "one type for all ids of jobs"),
    ("job_transitions", "job_id", "String(36)", "UUID", "a foreign key to jobs"),
    ("pose_results", "created_at", "DateTime", "DateTime(tz)", "as everywhere else"),
    ("threat_detections", "created_at", "DateTime", "DateTime(tz)", "as everywhere else"),
    ("demographics_results", "created_at", "DateTime", "DateTime(tz)", "as everywhere else"),
    ("reid_embeddings", "created_at", "DateTime", "DateTime(tz)", "as everywhere else"),
    ("action_results", "created_at", "DateTime", "DateTime(tz)", "as everywhere else"),
    ("pose_results", "pose_class", "String", "String(50)", "the document leaves it open"),
    ("threat_detections", "threat_type", "String", "String(50)", "the document leaves it open"),
    ("threat_detections", "severity", "String", "String(20)", "the document leaves it open"),
    ("demographics_results", "age_range", "String", "String(20)", "the document leaves it open"),
    ("demographics_results", "gender", "String", "String(20)", "the document leaves it open"),
    ("reid_embeddings", "embedding_hash", "String", "String(64)", "the length of a SHA-256"),
    ("action_results", "action", "String", "String(100)", "the document leaves it open"),
];

/// SQLite has no regular expressions.
const SQLITE_COLOR: &str = "color GLOB \
    '#[0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f][0-9A-Fa-f]'";

/// The schema in the words of the documents.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct Schema {
    /// The native enum types with their labels, in order.
    pub enums: BTreeMap<String, Vec<String>>,
    pub tables: BTreeMap<String, Table>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    #[serde(deserialize_with = "in_order")]
    pub columns: Vec<Column>,
    pub primary_key: Vec<String>,
    /// Names and conditions.
    pub checks: BTreeMap<String, String>,
    pub unique: BTreeMap<String, Vec<String>>,
    pub indexes: BTreeMap<String, Index>,
    /// For each column the parent and what happens when it goes.
    pub references: BTreeMap<String, (String, String)>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    #[serde(skip)]
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub nullable: bool,
    pub default: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    pub columns: Vec<String>,
    pub method: String,
    #[serde(default)]
    pub unique: bool,
    #[serde(rename = "where")]
    pub condition: Option<String>,
}

/// `tables.json` is the owner's document; `additions.json` the parents and what is ours.
pub fn schema(backend: Backend) -> Schema {
    let mut schema: Schema = serde_json::from_str(include_str!("tables.json")).unwrap();
    let additions: Schema = serde_json::from_str(include_str!("additions.json")).unwrap();
    for (name, addition) in additions.tables {
        let table = schema.tables.entry(name).or_default();
        table.columns.extend(addition.columns);
        table.primary_key.extend(addition.primary_key);
        table.checks.extend(addition.checks);
        table.unique.extend(addition.unique);
        table.indexes.extend(addition.indexes);
        table.references.extend(addition.references);
    }
    for (table, column, document, ours, _reason) in TYPES {
        let column = column_of(&mut schema, table, column);
        assert_eq!(&column.kind, document, "{table}.{}: a difference that is none", column.name);
        (*ours).clone_into(&mut column.kind);
    }
    for table in schema.tables.values_mut() {
        for column in &mut table.columns {
            if column.kind == "Integer" && names_a_row(&column.name, &table.references) {
                "BigInteger".clone_into(&mut column.kind);
            }
        }
        for index in table.indexes.values_mut() {
            index.condition = index.condition.as_deref().map(catalogue::plain);
        }
    }
    match backend {
        Backend::Sqlite => to_sqlite(&mut schema),
        Backend::Postgres => to_postgres(&mut schema),
    }
    schema
}

/// Ids are 64-bit, and so is what refers to them. `feed_state.id` and
/// `gpu_history_state.id` are always 1.
fn names_a_row(column: &str, references: &BTreeMap<String, (String, String)>) -> bool {
    column == "id" || references.contains_key(column)
}

fn to_postgres(schema: &mut Schema) {
    for table in ["feed_state", "gpu_history_state"] {
        "Integer".clone_into(&mut column_of(schema, table, "id").kind);
    }
    // Identity values commit out of order, so the writing transaction comes first.
    let changes = schema.tables.get_mut("changes").unwrap();
    changes.primary_key = ["xid", "seq"].map(str::to_owned).into();
    let xid = Column {
        name: "xid".to_owned(),
        kind: "xid8".to_owned(),
        nullable: false,
        default: Some("pg_current_xact_id()".to_owned()),
    };
    // `commit_seq`, the last column on SQLite, comes after `xid`.
    let at = changes.columns.len() - 1;
    changes.columns.insert(at, xid);
}

fn to_sqlite(schema: &mut Schema) {
    for table in ["feed_state", "gpu_history_state"] {
        "Integer".clone_into(&mut column_of(schema, table, "id").kind);
    }
    let enums = std::mem::take(&mut schema.enums);
    for (name, table) in &mut schema.tables {
        // No native enum types: text with a CHECK.
        for column in &mut table.columns {
            if let Some(vocabulary) = column.kind.strip_prefix("ENUM ") {
                let labels = enums[vocabulary].join("', '");
                let condition = format!("\"{}\" IN ('{labels}')", column.name);
                let check = format!("ck_{name}_{}", column.name);
                table.checks.insert(check, condition);
                "ENUM".clone_into(&mut column.kind);
            }
            // One type of integers, of up to 64 bits.
            if column.kind == "BigInteger" {
                "Integer".clone_into(&mut column.kind);
            }
            // No text vectors: a text that nobody fills.
            if column.kind == "TSVECTOR" {
                "Text".clone_into(&mut column.kind);
            }
        }
        // No inverted indexes, and no block ranges.
        table.indexes.retain(|_, index| index.method != "gin");
        for index in table.indexes.values_mut() {
            "btree".clone_into(&mut index.method);
        }
    }
    let zones = schema.tables.get_mut("camera_zones").unwrap();
    zones.checks.insert("ck_camera_zones_color_hex".to_owned(), SQLITE_COLOR.to_owned());
}

fn column_of<'a>(schema: &'a mut Schema, table: &str, column: &str) -> &'a mut Column {
    let table = schema.tables.get_mut(table).unwrap();
    table.columns.iter_mut().find(|found| found.name == column).unwrap()
}

/// Reads an object of columns without losing their order.
fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Column>, D::Error> {
    struct Columns;
    impl<'de> de::Visitor<'de> for Columns {
        type Value = Vec<Column>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object of columns")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Vec<Column>, A::Error> {
            let mut columns = Vec::new();
            while let Some((name, column)) = map.next_entry::<String, Column>()? {
                columns.push(Column { name, ..column });
            }
            Ok(columns)
        }
    }
    deserializer.deserialize_map(Columns)
}
