//! `ListGpuEvents`: pages of stored events.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, Select};

use crate::{
    db::Db,
    entity::gpu_event::{self, GpuEventKind},
    error::Result,
    pb,
    rpc::{check, enums::FromProto, page::Page, time},
};

/// Upper bound of values in one list of a filter.
const MAX_FILTER_VALUES: usize = 1_000;

/// Page of events for the request, newest first.
pub(in crate::gpu) async fn list_events(
    db: &Db,
    request: pb::ListGpuEventsRequest,
) -> Result<pb::ListGpuEventsResponse> {
    let filter = request.filter.unwrap_or_default();
    let page = Page::parse(request.page_size, &request.page_token, "gpu_events", &filter)?;
    let columns = (gpu_event::Column::OccurredAt, gpu_event::Column::Id);
    let key = |event: &gpu_event::Model| (event.occurred_at, event.id);
    let select = filter.select()?;
    let scan = db.scan_if(!filter.has_index()).await?;
    let (gpu_events, next_page_token) = page.newest_first(scan.reader(), select, columns, key).await?;
    Ok(pb::ListGpuEventsResponse { gpu_events, next_page_token })
}

impl pb::GpuEventFilter {
    /// Returns true if an index serves the filter: all events, the events of one GPU, or the events
    /// of one kind.
    fn has_index(&self) -> bool {
        let served = Self {
            gpu_uuids: self.gpu_uuids.clone(),
            kinds: self.kinds.clone(),
            occurred_at: self.occurred_at,
            ..Self::default()
        };
        *self == served && self.gpu_uuids.len() + self.kinds.len() <= 1
    }

    fn select(&self) -> Result<Select<gpu_event::Entity>> {
        use gpu_event::Column;
        let gpu_uuids = check::texts("filter.gpu_uuids", &self.gpu_uuids, MAX_FILTER_VALUES, &(1..=96))?;
        let host = check::text("filter.host", &self.host, 0..=255)?;
        let kinds = GpuEventKind::all_from_proto("filter.kinds", &self.kinds)?;
        let codes = codes(&self.codes)?;
        let (start, end) = time::bounds("filter.occurred_at", self.occurred_at)?;
        let mut select = gpu_event::Entity::find();
        if !gpu_uuids.is_empty() {
            select = select.filter(Column::GpuUuid.is_in(gpu_uuids));
        }
        if !host.is_empty() {
            select = select.filter(Column::Host.eq(host));
        }
        if !kinds.is_empty() {
            select = select.filter(Column::Kind.is_in(kinds));
        }
        if !codes.is_empty() {
            select = select.filter(Column::Code.is_in(codes));
        }
        if let Some(start) = start {
            select = select.filter(Column::OccurredAt.gte(start));
        }
        if let Some(end) = end {
            select = select.filter(Column::OccurredAt.lt(end));
        }
        Ok(select)
    }
}

fn codes(codes: &[i64]) -> Result<Vec<i64>> {
    if codes.len() > MAX_FILTER_VALUES {
        let problem = format!("must have at most {MAX_FILTER_VALUES} entries");
        return Err(crate::error::Error::invalid("filter.codes", problem));
    }
    let code = |(index, code): (usize, &i64)| check::within(&format!("filter.codes[{index}]"), *code, 0..=i64::MAX);
    codes.iter().enumerate().map(code).collect()
}
