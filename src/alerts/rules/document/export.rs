//! `ExportAlertRules`: from the table to a document.

use sea_orm::{ColumnTrait, QueryFilter, QueryOrder, QuerySelect, Select};

use super::{
    format::{MAX_BYTES, MAX_RULES},
    write::Document,
};
use crate::{
    db::Db,
    entity::alert_rule::{self, Column},
    error::{Error, Result},
    pb,
};

/// Number of rules per query.
const RULES_PER_QUERY: u64 = 500;

/// Writes the matching rules into a document. All rules come from one snapshot.
pub(in crate::alerts) async fn export(
    db: &Db,
    request: &pb::ExportAlertRulesRequest,
) -> Result<pb::ExportAlertRulesResponse> {
    let filter = request.filter.clone().unwrap_or_default();
    let select = filter.select(db.backend())?;
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let written = write_rules(&tx, select, Document::new(request.with_output_only)).await;
    tx.rollback().await?;
    let document = written?;
    Ok(pb::ExportAlertRulesResponse {
        alert_rules: i32::try_from(document.rules).map_err(Error::internal)?,
        document: document.finish(),
    })
}

async fn write_rules(
    db: &impl sea_orm::ConnectionTrait,
    select: Select<alert_rule::Entity>,
    mut document: Document,
) -> Result<Document> {
    let mut last_id = None;
    loop {
        let mut page = select.clone().order_by_asc(Column::Id).limit(RULES_PER_QUERY);
        if let Some(last_id) = last_id {
            page = page.filter(Column::Id.gt(last_id));
        }
        let rules = page.all(db).await?;
        for rule in &rules {
            document.add(rule)?;
        }
        if document.rules > MAX_RULES || document.len() > MAX_BYTES {
            return Err(Error::invalid("filter", format!("matches more than {MAX_RULES} rules or {MAX_BYTES} bytes")));
        }
        match rules.last() {
            Some(rule) => last_id = Some(rule.id),
            None => return Ok(document),
        }
    }
}
