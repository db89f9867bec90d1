//! `SilenceService`, and rules that are silenced.

mod crud;
mod ingest;
mod lists;
mod refusals;
mod suppressions;

use watchpost::pb;

use crate::support::{
    TestServer,
    calls::{Reply, mask},
};

async fn create(server: &TestServer, silence: pb::Silence) -> Reply<pb::Silence> {
    let silence = Some(silence);
    let request = pb::CreateSilenceRequest { silence };
    server.silences().create_silence(request).await
}

async fn get(server: &TestServer, id: &str) -> Reply<pb::Silence> {
    let request = pb::GetSilenceRequest { id: id.into() };
    server.silences().get_silence(request).await
}

async fn update(server: &TestServer, silence: pb::Silence, paths: &[&str]) -> Reply<pb::Silence> {
    let request =
        pb::UpdateSilenceRequest { silence: Some(silence), update_mask: mask(paths), expected_version_id: None };
    server.silences().update_silence(request).await
}

async fn expire(server: &TestServer, id: &str) -> Reply<pb::Silence> {
    let request = pb::ExpireSilenceRequest { id: id.into(), expected_version_id: None };
    server.silences().expire_silence(request).await
}
