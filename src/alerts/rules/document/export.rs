//! From the table into a document.

use sea_orm::{ColumnTrait, QueryFilter, QueryOrder, QuerySelect, Select};

use super::{LARGEST, RULES, write::Document};
use crate::{
    db::Db,
    entity::alert_rule::{self, Column},
    error::{Error, Result},
    pb,
};

/// How many rules are read at a time.
const PAGE: u64 = 500;

/// Writes the rules that match into a document, as they are at one moment.
pub(in crate::alerts) async fn export(
    db: &Db,
    request: &pb::ExportAlertRulesRequest,
) -> Result<pb::ExportAlertRulesResponse> {
    let filter = request.filter.clone().unwrap_or_default();
    let select = filter.select(db.backend())?;
    let scan = db.scan().await?;
    let tx = scan.snapshot().await?;
    let document = write(&tx, select, Document::new(request.with_output_only)).await;
    tx.rollback().await?;
    let document = document?;
    Ok(pb::ExportAlertRulesResponse {
        alert_rules: i32::try_from(document.rules).map_err(Error::internal)?,
        document: document.end(),
    })
}

async fn write(
    db: &impl sea_orm::ConnectionTrait,
    select: Select<alert_rule::Entity>,
    mut document: Document,
) -> Result<Document> {
    let mut last = None;
    loop {
        let mut page = select.clone().order_by_asc(Column::Id).limit(PAGE);
        if let Some(last) = last {
            page = page.filter(Column::Id.gt(last));
        }
        let rules = page.all(db).await?;
        for rule in &rules {
            document.add(rule)?;
        }
        if document.rules > RULES || document.len() > LARGEST {
            return Err(Error::invalid(
                "filter",
                format!("matches more than {RULES} rules or {LARGEST} bytes"),
            ));
        }
        match rules.last() {
            Some(rule) => last = Some(rule.id),
            None => return Ok(document),
        }
    }
}
