//! `CameraZoneService`.

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{NotSet, Set},
    ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter, QuerySelect,
};
use tonic::{Request, Response};
use uuid::Uuid;

use super::{check::UPDATABLE, live::LiveZones, shape::corners};
use crate::{
    db::{Db, row},
    entity::{
        self, alert_rule, camera,
        camera_zone::{self, Column, Entity, ZoneAnchor, ZoneShape, ZoneType},
    },
    error::{Error, Result},
    feed,
    pb::{self, ChangeKind, camera_zone_service_server::CameraZoneService, watch_response::Update},
    rpc::{Reply, check, enums::proto_enum, mask::UpdateMask, page::Page, time},
    topics,
};

/// Largest number of zones per camera.
const MAX_ZONES_PER_CAMERA: u64 = 250;

/// Implementation of `CameraZoneService`.
#[derive(Debug, Clone)]
pub struct CameraZones {
    /// Database of the zones.
    pub db: Db,
    /// Cache of the compiled zones, refreshed after every change.
    pub zones: LiveZones,
}

impl CameraZones {
    /// Refreshes the compiled zones before the response, so that the caller's next event meets the
    /// change.
    async fn apply(&self, camera_id: &str) {
        if let Err(error) = self.zones.refresh(camera_id).await {
            // The change is committed. The change feed triggers another refresh.
            tracing::warn!(%error, "camera zones cannot be refreshed; the change takes effect with a delay");
        }
    }
}

#[tonic::async_trait]
impl CameraZoneService for CameraZones {
    async fn create_camera_zone(&self, request: Request<pb::CreateCameraZoneRequest>) -> Reply<pb::CameraZone> {
        let zone = request.into_inner().camera_zone.ok_or_else(|| Error::invalid("camera_zone", "is required"))?;
        let id = match zone.id.as_str() {
            "" => Uuid::now_v7().to_string(),
            id => check::id("camera_zone.id", id)?,
        };
        let camera_id = check::id("camera_zone.camera_id", &zone.camera_id)?;
        let row = camera_zone::ActiveModel {
            id: Set(id.clone()),
            camera_id: Set(camera_id.clone()),
            version_id: Set(1),
            ..zone.checked()?
        };
        let creating = self.db.write(async |tx| {
            refuse_absent_camera(tx, &camera_id).await?;
            if Entity::find_by_id(id).one(tx).await?.is_some() {
                return Err(already_exists("camera_zone.id"));
            }
            refuse_taken_name(tx, &row, None).await?;
            refuse_above_limit(tx, &camera_id).await?;
            let zone = row.insert(tx).await.map_err(constraint_error)?;
            announce(tx, ChangeKind::Created, zone).await
        });
        let zone = creating.await?;
        self.apply(&zone.camera_id).await;
        Ok(Response::new(zone))
    }

    async fn get_camera_zone(&self, request: Request<pb::GetCameraZoneRequest>) -> Reply<pb::CameraZone> {
        let id = check::id("id", &request.into_inner().id)?;
        let zone = Entity::find_by_id(&id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(zone, "camera zone", id)?.into()))
    }

    async fn list_camera_zones(
        &self,
        request: Request<pb::ListCameraZonesRequest>,
    ) -> Reply<pb::ListCameraZonesResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "camera_zones", &filter)?;
        let columns = (Column::Priority, Column::Id);
        let key = |zone: &camera_zone::Model| (zone.priority.into(), zone.id.clone());
        let (camera_zones, next_page_token) =
            page.highest_first(self.db.reader(), filter.select()?, columns, key).await?;
        Ok(Response::new(pb::ListCameraZonesResponse { camera_zones, next_page_token }))
    }

    async fn update_camera_zone(&self, request: Request<pb::UpdateCameraZoneRequest>) -> Reply<pb::CameraZone> {
        let request = request.into_inner();
        let changes = request.camera_zone.ok_or_else(|| Error::invalid("camera_zone", "is required"))?;
        let id = check::id("camera_zone.id", &changes.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let updating = self.db.write(async |tx| {
            let stored = find_locked(tx, &id).await?;
            let version_id = stored.version_id;
            if request.expected_version_id.is_some_and(|expected| expected != version_id) {
                let resource = "camera zone";
                return Err(Error::StaleVersion { resource });
            }
            let updated_at = entity::now().max(stored.updated_at);
            let camera_id = stored.camera_id.clone();
            let before = pb::CameraZone::from(stored);
            // The resulting zone is validated as a whole, like a new zone.
            let zone = before.clone().with(changes, &mask);
            let mut row = zone.checked()?;
            if zone == before {
                return Ok(before);
            }
            row.id = Set(id.clone());
            row.camera_id = Set(camera_id);
            refuse_taken_name(tx, &row, Some(&id)).await?;
            row.created_at = NotSet;
            row.updated_at = Set(updated_at);
            row.version_id = Set(version_id + 1);
            let zone = row.update(tx).await.map_err(constraint_error)?;
            announce(tx, ChangeKind::Updated, zone).await
        });
        let zone = updating.await?;
        self.apply(&zone.camera_id).await;
        Ok(Response::new(zone))
    }

    async fn delete_camera_zone(&self, request: Request<pb::DeleteCameraZoneRequest>) -> Reply<()> {
        let request = request.into_inner();
        let id = check::id("id", &request.id)?;
        let deleted = self.db.write(async |tx| {
            // The lock serializes this call with writers of rules that name the zone.
            let zone = find_locked(tx, &id).await?;
            if !request.force {
                refuse_used(tx, &id).await?;
            }
            Entity::delete_by_id(&id).exec(tx).await?;
            announce(tx, ChangeKind::Deleted, zone).await
        });
        let zone = deleted.await?;
        self.apply(&zone.camera_id).await;
        Ok(Response::new(()))
    }

    async fn locate_detections(
        &self,
        request: Request<pb::LocateDetectionsRequest>,
    ) -> Reply<pb::LocateDetectionsResponse> {
        let locations = self.locate(request.into_inner()).await?;
        Ok(Response::new(pb::LocateDetectionsResponse { locations }))
    }

    async fn count_zone_hits(&self, request: Request<pb::CountZoneHitsRequest>) -> Reply<pb::CountZoneHitsResponse> {
        let buckets = self.count(request.get_ref()).await?;
        Ok(Response::new(pb::CountZoneHitsResponse { buckets }))
    }
}

/// Loads a zone and locks the row until the transaction ends.
async fn find_locked(tx: &DatabaseTransaction, id: &str) -> Result<camera_zone::Model> {
    row::require(Entity::find_by_id(id).lock_exclusive().one(tx).await?, "camera zone", id)
}

async fn announce(tx: &DatabaseTransaction, kind: ChangeKind, zone: camera_zone::Model) -> Result<pb::CameraZone> {
    let zone = pb::CameraZone::from(zone);
    let change = pb::CameraZoneChange { kind: kind.into(), camera_zone: Some(zone.clone()) };
    let record = topics::record(&zone.id, Update::CameraZone(change));
    feed::record(tx, [record]).await?;
    Ok(zone)
}

async fn refuse_absent_camera(tx: &DatabaseTransaction, id: &str) -> Result<()> {
    let camera = camera::Entity::find_by_id(id).one(tx).await?;
    if camera.is_some_and(|camera| camera.deleted_at.is_none()) {
        return Ok(());
    }
    Err(Error::BrokenReference {
        field: "camera_zone.camera_id".into(),
        problem: "names a camera that does not exist or is deleted".into(),
    })
}

/// Fails with `ALREADY_EXISTS` if another zone of the camera has the name.
async fn refuse_taken_name(tx: &DatabaseTransaction, row: &camera_zone::ActiveModel, own: Option<&str>) -> Result<()> {
    let values = (row.get(Column::CameraId).into_value(), row.get(Column::Name).into_value());
    let (Some(camera_id), Some(name)) = values else {
        return Ok(());
    };
    let other = Entity::find().filter(Column::CameraId.eq(camera_id)).filter(Column::Name.eq(name)).one(tx).await?;
    if other.is_some_and(|other| Some(&*other.id) != own) {
        return Err(already_exists("camera_zone.name"));
    }
    Ok(())
}

/// Refuses a zone above the limit of the camera. Every detection is compared with every zone.
async fn refuse_above_limit(tx: &DatabaseTransaction, camera_id: &str) -> Result<()> {
    let zones = Entity::find().filter(Column::CameraId.eq(camera_id));
    if zones.count(tx).await? < MAX_ZONES_PER_CAMERA {
        return Ok(());
    }
    let problem = format!("names a camera that has {MAX_ZONES_PER_CAMERA} zones already, which is the most");
    Err(Error::invalid("camera_zone.camera_id", problem))
}

/// Refuses the deletion of a zone that rules name.
async fn refuse_used(tx: &DatabaseTransaction, id: &str) -> Result<()> {
    let rules = alert_rule::Entity::find().filter(alert_rule::Column::ZoneIds.is_not_null()).all(tx).await?;
    let is_user = |rule: &alert_rule::Model| {
        let zone_ids = rule.zone_ids.as_ref();
        zone_ids.is_some_and(|zone_ids| zone_ids.0.iter().any(|zone_id| zone_id == id))
    };
    let users: Vec<_> = rules.into_iter().filter(is_user).collect();
    if users.is_empty() {
        return Ok(());
    }
    let names_and_ids = users.iter().map(|rule| (rule.name.as_str(), rule.id.to_string()));
    Err(Error::in_use("camera zone", "alert rule", names_and_ids))
}

fn already_exists(field: &str) -> Error {
    Error::AlreadyExists { field: field.into(), problem: "another camera zone has it".into() }
}

/// Converts a violated unique constraint into an error with the field name.
fn constraint_error(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    let Error::AlreadyExists { field, .. } = &error else {
        return error;
    };
    already_exists(if field.contains("name") { "camera_zone.name" } else { "camera_zone.id" })
}

impl From<camera_zone::Model> for pb::CameraZone {
    fn from(row: camera_zone::Model) -> Self {
        let point = |[x, y]: [f64; 2]| pb::Point { x, y };
        Self {
            coordinates: corners(&row).into_iter().map(point).collect(),
            id: row.id,
            camera_id: row.camera_id,
            name: row.name,
            zone_type: pb::CameraZoneType::from(row.zone_type).into(),
            shape: pb::CameraZoneShape::from(row.shape).into(),
            color: Some(row.color),
            enabled: Some(row.enabled),
            priority: row.priority,
            created_at: Some(time::to_proto(row.created_at)),
            updated_at: Some(time::to_proto(row.updated_at)),
            anchor: pb::CameraZoneAnchor::from(row.anchor).into(),
            min_overlap: row.min_overlap,
            version_id: row.version_id,
        }
    }
}

proto_enum!(ZoneType, pb::CameraZoneType { EntryPoint, Driveway, Sidewalk, Yard, Other });
proto_enum!(ZoneShape, pb::CameraZoneShape { Rectangle, Polygon });
proto_enum!(ZoneAnchor, pb::CameraZoneAnchor { Center, Foot, Overlap });
