//! `CameraService`.

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Select,
};
use tonic::{Request, Response};

use crate::{
    db::{Db, row},
    entity::{
        self,
        camera::{self, CameraStatus},
    },
    error::{Error, Result},
    feed,
    pb::{self, camera_service_server::CameraService, watch_response::Update},
    rpc::{
        Reply, check,
        enums::{FromProto, proto_enum},
        mask::UpdateMask,
        page::Page,
        time,
    },
    topics,
};

/// Fields that `UpdateCamera` may change.
const UPDATABLE: [&str; 3] = ["name", "folder_path", "status"];

/// Largest length of a folder path, in characters. Even with four bytes per character, the path
/// fits into a PostgreSQL index.
const MAX_FOLDER_PATH_CHARS: usize = 512;

/// Implementation of `CameraService`.
#[derive(Debug, Clone)]
pub struct Cameras {
    /// Database of the cameras.
    pub db: Db,
}

#[tonic::async_trait]
impl CameraService for Cameras {
    async fn create_camera(&self, request: Request<pb::CreateCameraRequest>) -> Reply<pb::Camera> {
        let camera = request.into_inner().camera.ok_or_else(|| Error::invalid("camera", "is required"))?;
        let name = check::name("camera.name", &camera.name, 1..=255)?;
        let id = match camera.id.as_str() {
            "" => id_from_name(&name)?,
            id => check::id("camera.id", id)?,
        };
        let folder_path = match camera.folder_path.as_str() {
            "" => id.clone(),
            path => check::name("camera.folder_path", path, 1..=MAX_FOLDER_PATH_CHARS)?,
        };
        let status = CameraStatus::from_proto("camera.status", camera.status)?;
        let row = camera::ActiveModel {
            id: Set(id),
            name: Set(name),
            folder_path: Set(folder_path),
            status: Set(status.unwrap_or(CameraStatus::Online)),
            last_seen_at: Set(None),
            deleted_at: Set(None),
            ..Default::default()
        };
        let creating = self.db.write(async |tx| {
            refuse_taken(tx, &row).await?;
            let camera = row.insert(tx).await.map_err(constraint_error)?;
            announce(tx, pb::ChangeKind::Created, camera).await
        });
        Ok(Response::new(creating.await?))
    }

    async fn get_camera(&self, request: Request<pb::GetCameraRequest>) -> Reply<pb::Camera> {
        let id = check::id("id", &request.into_inner().id)?;
        let camera = camera::Entity::find_by_id(&id).one(self.db.reader()).await.map_err(Error::from)?;
        Ok(Response::new(row::require(camera, "camera", id)?.into()))
    }

    async fn list_cameras(&self, request: Request<pb::ListCamerasRequest>) -> Reply<pb::ListCamerasResponse> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let page = Page::parse(request.page_size, &request.page_token, "cameras", &filter)?;
        let columns = (camera::Column::CreatedAt, camera::Column::Id);
        let key = |camera: &camera::Model| (camera.created_at, camera.id.clone());
        let (cameras, next_page_token) = page.newest_first(self.db.reader(), filter.select()?, columns, key).await?;
        Ok(Response::new(pb::ListCamerasResponse { cameras, next_page_token }))
    }

    async fn update_camera(&self, request: Request<pb::UpdateCameraRequest>) -> Reply<pb::Camera> {
        let request = request.into_inner();
        let camera = request.camera.ok_or_else(|| Error::invalid("camera", "is required"))?;
        let id = check::id("camera.id", &camera.id)?;
        let mask = UpdateMask::parse(request.update_mask, &UPDATABLE)?;
        let mut row = <camera::ActiveModel as ActiveModelTrait>::default();
        if mask.covers("name", !camera.name.is_empty()) {
            row.name = Set(check::name("camera.name", &camera.name, 1..=255)?);
        }
        if mask.covers("folder_path", !camera.folder_path.is_empty()) {
            row.folder_path = Set(match camera.folder_path.as_str() {
                "" => id.clone(),
                path => check::name("camera.folder_path", path, 1..=MAX_FOLDER_PATH_CHARS)?,
            });
        }
        if mask.covers("status", camera.status != 0) {
            let status = CameraStatus::from_proto("camera.status", camera.status)?;
            row.status = Set(status.unwrap_or(CameraStatus::Online));
        }
        let updating = self.db.write(async |tx| {
            let before = find_present(tx, &id).await?;
            if !row.is_changed() {
                return Ok(before.into());
            }
            row.id = Set(id);
            let camera = row.update(tx).await.map_err(constraint_error)?;
            announce(tx, pb::ChangeKind::Updated, camera).await
        });
        Ok(Response::new(updating.await?))
    }

    async fn delete_camera(&self, request: Request<pb::DeleteCameraRequest>) -> Reply<()> {
        let id = check::id("id", &request.into_inner().id)?;
        let deleted = self.db.write(async |tx| {
            let mut camera: camera::ActiveModel = find_present(tx, &id).await?.into();
            camera.deleted_at = Set(Some(entity::now()));
            announce(tx, pb::ChangeKind::Deleted, camera.update(tx).await?).await
        });
        deleted.await?;
        Ok(Response::new(()))
    }

    async fn restore_camera(&self, request: Request<pb::RestoreCameraRequest>) -> Reply<pb::Camera> {
        let id = check::id("id", &request.into_inner().id)?;
        let restoring = self.db.write(async |tx| {
            let stored = find_locked(tx, &id).await?;
            if stored.deleted_at.is_none() {
                return Err(Error::WrongStatus { resource: "camera", status: "not deleted".into() });
            }
            let mut camera: camera::ActiveModel = stored.into();
            camera.deleted_at = Set(None);
            announce(tx, pb::ChangeKind::Restored, camera.update(tx).await?).await
        });
        Ok(Response::new(restoring.await?))
    }
}

/// Loads a camera, deleted or not, and locks the row until the transaction ends.
async fn find_locked(tx: &DatabaseTransaction, id: &str) -> Result<camera::Model> {
    row::require(camera::Entity::find_by_id(id).lock_exclusive().one(tx).await?, "camera", id)
}

/// Loads a camera that is not deleted, and locks the row until the transaction ends.
async fn find_present(tx: &DatabaseTransaction, id: &str) -> Result<camera::Model> {
    let camera = find_locked(tx, id).await?;
    row::require(Some(camera).filter(|camera| camera.deleted_at.is_none()), "camera", id)
}

async fn announce(tx: &DatabaseTransaction, kind: pb::ChangeKind, camera: camera::Model) -> Result<pb::Camera> {
    let camera = pb::Camera::from(camera);
    let change = pb::CameraChange { kind: kind.into(), camera: Some(camera.clone()) };
    let record = topics::record(&camera.id, Update::Camera(change));
    feed::record(tx, [record]).await?;
    Ok(camera)
}

/// Fails with `ALREADY_EXISTS` if another camera has the same id, name or folder path.
async fn refuse_taken(tx: &DatabaseTransaction, row: &camera::ActiveModel) -> Result<()> {
    use camera::Column::{FolderPath, Id, Name};
    for (column, field) in [(Id, "id"), (Name, "name"), (FolderPath, "folder_path")] {
        let Some(value) = row.get(column).into_value() else {
            continue;
        };
        if camera::Entity::find().filter(column.eq(value)).one(tx).await?.is_some() {
            return Err(already_exists(&format!("camera.{field}")));
        }
    }
    Ok(())
}

fn already_exists(field: &str) -> Error {
    let problem = "another camera, perhaps a deleted one, has it".into();
    Error::AlreadyExists { field: field.into(), problem }
}

/// Converts a violated unique constraint into an error with the field name.
fn constraint_error(error: sea_orm::DbErr) -> Error {
    let error = Error::from(error);
    let Error::AlreadyExists { field, .. } = &error else {
        return error;
    };
    let field = if field.contains("folder_path") {
        "camera.folder_path"
    } else if field.contains("name") {
        "camera.name"
    } else {
        "camera.id"
    };
    already_exists(field)
}

/// Derives an id from a name, see `Camera.id`.
fn id_from_name(name: &str) -> Result<String> {
    let mut id = String::new();
    for c in name.trim().to_lowercase().chars() {
        let is_separator = matches!(c, ' ' | '-' | '_');
        if is_separator && !id.is_empty() && !id.ends_with('_') {
            id.push('_');
        } else if c.is_ascii_alphanumeric() {
            id.push(c);
        }
    }
    id.truncate(64);
    let trimmed = id.trim_end_matches('_');
    if trimmed.is_empty() {
        return Err(Error::invalid("camera.id", "is required, for none can be made of the name"));
    }
    Ok(trimmed.to_string())
}

impl pb::CameraFilter {
    fn select(self) -> Result<Select<camera::Entity>> {
        let status = CameraStatus::from_proto("filter.status", self.status)?;
        let mut select = camera::Entity::find();
        if let Some(status) = status {
            select = select.filter(camera::Column::Status.eq(status));
        }
        if !self.show_deleted {
            select = select.filter(camera::Column::DeletedAt.is_null());
        }
        Ok(select)
    }
}

impl From<camera::Model> for pb::Camera {
    fn from(row: camera::Model) -> Self {
        Self {
            id: row.id,
            name: row.name,
            folder_path: row.folder_path,
            status: pb::CameraStatus::from(row.status).into(),
            created_at: Some(time::to_proto(row.created_at)),
            last_seen_at: row.last_seen_at.map(time::to_proto),
            deleted_at: row.deleted_at.map(time::to_proto),
        }
    }
}

proto_enum!(CameraStatus, pb::CameraStatus { Online, Offline, Error, Unknown });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_made_of_names() {
        for (name, id) in
            [("Front Door", "front_door"), ("  Garage -- 2  ", "garage_2"), ("Küche", "kche"), ("_a_", "a")]
        {
            assert_eq!(id_from_name(name).unwrap(), id);
        }
        assert!(id_from_name("車").is_err());
        assert!(id_from_name(&"a ".repeat(200)).unwrap().len() <= 64);
    }
}
