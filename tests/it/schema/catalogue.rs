//! What the databases say their schema is, in the words of the documents.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, QueryResult, Statement, TryGetable};

use super::expected::{Column, Index, Schema};
use crate::support::database::Backend;

pub async fn schema(backend: Backend, db: &DatabaseConnection) -> Schema {
    match backend {
        Backend::Sqlite => sqlite(db).await,
        Backend::Postgres => postgres(db).await,
    }
}

async fn rows(db: &DatabaseConnection, query: &str) -> Vec<QueryResult> {
    let statement = Statement::from_string(db.get_database_backend(), query);
    db.query_all_raw(statement).await.unwrap()
}

fn get<T: TryGetable>(row: &QueryResult, column: &str) -> T {
    row.try_get("", column).unwrap()
}

fn words(list: &str) -> Vec<String> {
    list.split(", ").map(str::to_owned).collect()
}

async fn postgres(db: &DatabaseConnection) -> Schema {
    assert_eq!(db.get_database_backend(), DbBackend::Postgres);
    let mut schema = Schema::default();
    for row in rows(db, POSTGRES_ENUMS).await {
        let labels: String = get(&row, "labels");
        schema.enums.insert(get(&row, "name"), words(&labels));
    }
    for row in rows(db, POSTGRES_COLUMNS).await {
        let identity: bool = get(&row, "identity");
        let default: Option<String> = get(&row, "default");
        let table = schema.tables.entry(get(&row, "table")).or_default();
        table.columns.push(Column {
            name: get(&row, "name"),
            kind: postgres_kind(&get::<String>(&row, "type"), get(&row, "enum")),
            nullable: get(&row, "nullable"),
            default: if identity { Some("Auto".to_owned()) } else { default.as_deref().and_then(meaning) },
        });
    }
    for row in rows(db, POSTGRES_CONSTRAINTS).await {
        let table = schema.tables.entry(get(&row, "table")).or_default();
        let name: String = get(&row, "name");
        let columns: String = get(&row, "columns");
        match get::<String>(&row, "kind").as_str() {
            "p" => table.primary_key = words(&columns),
            // PostgreSQL keeps the condition in words of its own.
            "c" => drop(table.checks.insert(name, String::new())),
            "u" => drop(table.unique.insert(name, words(&columns))),
            "f" => {
                let parent = (get(&row, "parent"), get(&row, "on_delete"));
                table.references.insert(columns, parent);
            }
            kind => panic!("{name}: a constraint of the kind {kind}"),
        }
    }
    for row in rows(db, POSTGRES_INDEXES).await {
        let table = schema.tables.entry(get(&row, "table")).or_default();
        let columns: String = get(&row, "columns");
        let index = Index {
            columns: words(&columns),
            method: get(&row, "method"),
            unique: get(&row, "unique"),
            condition: get::<Option<String>>(&row, "condition").map(|found| plain(&found)),
        };
        table.indexes.insert(get(&row, "name"), index);
    }
    schema.tables.remove("seaql_migrations");
    schema
}

const POSTGRES_ENUMS: &str = "
    SELECT typname AS name, string_agg(enumlabel, ', ' ORDER BY enumsortorder) AS labels
    FROM pg_enum JOIN pg_type ON pg_type.oid = enumtypid GROUP BY typname";

const POSTGRES_COLUMNS: &str = "
    SELECT relname AS table, attname AS name, format_type(atttypid, atttypmod) AS type,
        typtype = 'e' AS enum, NOT attnotnull AS nullable, attidentity <> '' AS identity,
        pg_get_expr(adbin, adrelid) AS default
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        JOIN pg_type ON pg_type.oid = atttypid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        AND attnum > 0 AND NOT attisdropped
    ORDER BY relname, attnum";

const POSTGRES_CONSTRAINTS: &str = "
    SELECT conrelid::regclass::text AS table, conname AS name, contype::text AS kind,
        (SELECT coalesce(string_agg(attname, ', ' ORDER BY place), '')
            FROM unnest(conkey) WITH ORDINALITY AS key (number, place)
            JOIN pg_attribute ON attrelid = conrelid AND attnum = number) AS columns,
        confrelid::regclass::text AS parent,
        CASE confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL'
            ELSE confdeltype::text END AS on_delete
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0";

/// An operator class that is not the usual one follows its column.
const POSTGRES_INDEXES: &str = "
    SELECT indrelid::regclass::text AS table, relname AS name, amname AS method,
        indisunique AS unique, pg_get_expr(indpred, indrelid) AS condition,
        (SELECT string_agg(attname || CASE WHEN opcdefault THEN '' ELSE ' ' || opcname END,
                ', ' ORDER BY place)
            FROM unnest(indkey::int2[], indclass::oid[]) WITH ORDINALITY
                AS key (number, class, place)
            JOIN pg_attribute ON attrelid = indrelid AND attnum = number
            JOIN pg_opclass ON pg_opclass.oid = class) AS columns
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
    WHERE relnamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid
            AND contype IN ('p', 'u'))";

fn postgres_kind(name: &str, is_enum: bool) -> String {
    if is_enum {
        return format!("ENUM {name}");
    }
    let known = match name {
        "integer" => "Integer",
        "bigint" => "BigInteger",
        "double precision" => "Float",
        "boolean" => "Boolean",
        "text" => "Text",
        "json" => "JSON",
        "jsonb" => "JSONB",
        "uuid" => "UUID",
        "bytea" => "Bytes",
        "tsvector" => "TSVECTOR",
        "timestamp with time zone" => "DateTime(tz)",
        _ => return name.replace("character varying", "String"),
    };
    known.to_owned()
}

async fn sqlite(db: &DatabaseConnection) -> Schema {
    let mut schema = Schema::default();
    for row in rows(db, SQLITE_TABLES).await {
        let name: String = get(&row, "name");
        let sql: String = get(&row, "sql");
        let table = schema.tables.entry(name.clone()).or_default();
        for row in rows(db, &format!("SELECT * FROM pragma_table_info('{name}')")).await {
            let name: String = get(&row, "name");
            let default: Option<String> = get(&row, "dflt_value");
            let automatic = sql.contains(&format!("\"{name}\" integer NOT NULL PRIMARY KEY AUTOINCREMENT"));
            if get::<i32>(&row, "pk") > 0 {
                table.primary_key.push(name.clone());
            }
            table.columns.push(Column {
                name,
                kind: sqlite_kind(&get::<String>(&row, "type").to_lowercase()),
                nullable: get::<i32>(&row, "notnull") == 0,
                default: if automatic { Some("Auto".to_owned()) } else { default.as_deref().and_then(meaning) },
            });
        }
        for (name, rest) in constraints(&sql) {
            if let Some(condition) = rest.strip_prefix("CHECK ") {
                table.checks.insert(name, parenthesised(condition).to_owned());
            } else if let Some(columns) = rest.strip_prefix("UNIQUE ") {
                let columns = parenthesised(columns).replace('"', "");
                table.unique.insert(name, words(&columns));
            }
        }
        for row in rows(db, &format!("SELECT * FROM pragma_foreign_key_list('{name}')")).await {
            let parent = (get(&row, "table"), get(&row, "on_delete"));
            table.references.insert(get(&row, "from"), parent);
        }
        for row in rows(db, &SQLITE_INDEXES.replace("$table", &name)).await {
            let columns: String = get(&row, "columns");
            let sql: String = get(&row, "sql");
            let index = Index {
                columns: words(&columns),
                method: "btree".to_owned(),
                unique: get::<i32>(&row, "unique") == 1,
                condition: sql.split_once(" WHERE ").map(|(_, found)| plain(found)),
            };
            table.indexes.insert(get(&row, "name"), index);
        }
    }
    schema
}

/// The shadow tables of the full-text index are its own matter.
const SQLITE_TABLES: &str = "
    SELECT name, sql FROM sqlite_schema WHERE type = 'table'
        AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'logs_fts%' AND name <> 'seaql_migrations'";

const SQLITE_INDEXES: &str = "
    SELECT list.name AS name, list.\"unique\" AS \"unique\", sql,
        (SELECT group_concat(info.name, ', ') FROM pragma_index_info(list.name) AS info) AS columns
    FROM pragma_index_list('$table') AS list JOIN sqlite_schema ON sqlite_schema.name = list.name
    WHERE list.origin = 'c'";

fn sqlite_kind(name: &str) -> String {
    let known = match name {
        "integer" => "Integer",
        "double" => "Float",
        "boolean" => "Boolean",
        "text" => "Text",
        "json_text" => "JSON",
        "jsonb_text" => "JSONB",
        "uuid_text" => "UUID",
        "blob" => "Bytes",
        "enum_text" => "ENUM",
        "timestamp_with_timezone_text" => "DateTime(tz)",
        _ => return name.replace("varchar", "String"),
    };
    known.to_owned()
}

/// The named constraints of a `CREATE TABLE`, each with what follows its name.
fn constraints(sql: &str) -> impl Iterator<Item = (String, &str)> {
    sql.split("CONSTRAINT \"").skip(1).filter_map(|constraint| {
        let (name, rest) = constraint.split_once("\" ")?;
        Some((name.to_owned(), rest))
    })
}

/// What stands between the first parenthesis and the one that closes it.
fn parenthesised(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|character| {
        depth += match character {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth == 0
    });
    text[1..end.unwrap()].trim()
}

/// A default in the words of the documents; none if it says NULL.
fn meaning(default: &str) -> Option<String> {
    let named = [
        ("+7 days", "+7 days"),
        ("'7 days'", "+7 days"),
        ("strftime", "now()"),
        ("randomblob", "Auto (UUID7)"),
        ("watchpost_uuid7()", "Auto (UUID7)"),
    ];
    if let Some((_, meaning)) = named.iter().find(|(mark, _)| default.contains(mark)) {
        return Some((*meaning).to_owned());
    }
    let literal = default.split("::").next().unwrap_or(default);
    match literal {
        "TRUE" | "FALSE" => Some(literal.to_lowercase()),
        "NULL" => None,
        _ => Some(literal.to_owned()),
    }
}

/// A condition in lower case and on one line, without the quotes, parentheses and casts that a database
/// puts around it.
pub fn plain(condition: &str) -> String {
    let bare = condition.replace(['(', ')', '"'], "").replace("::text", "");
    let words: Vec<&str> = bare.split_whitespace().collect();
    words.join(" ").to_lowercase()
}
