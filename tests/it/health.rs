//! Health and reflection: what tools ask first.

use tokio_stream::{StreamExt, iter};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{
    TestServer,
    database::{Backend, on_both},
};

const SERVICES: [&str; 8] = [
    "watchpost.v1.AlertRuleService",
    "watchpost.v1.AlertService",
    "watchpost.v1.CameraService",
    "watchpost.v1.CameraZoneService",
    "watchpost.v1.EventService",
    "watchpost.v1.GpuStatsService",
    "watchpost.v1.MonitorService",
    "watchpost.v1.SilenceService",
];

#[on_both]
async fn every_service_serves_but_the_one_without_nvml(backend: Backend) {
    let server = TestServer::start(backend).await;
    let mut health = HealthClient::new(server.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        let expected = if service.contains("Gpu") { ServingStatus::NotServing } else { ServingStatus::Serving };
        assert_eq!(status, expected, "{service}");
    }
    let unknown = HealthCheckRequest { service: "nope".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    server.stop().await;
}

#[on_both]
async fn both_reflections_list_every_service_and_an_open_one_does_not_hold_up_the_end(backend: Backend) {
    let server = TestServer::start(backend).await;
    let expected: Vec<_> = SERVICES.into_iter().map(String::from).collect();

    let ask = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = v1::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let open = iter([ask]).chain(tokio_stream::pending());
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let mut answers = client.server_reflection_info(open).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(expected.iter().all(|name| names.contains(name)), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health".to_string()), "{names:?}");

    let ask = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(expected[5].clone());
    let ask = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let mut files = client.server_reflection_info(iter([ask])).await.unwrap().into_inner();
    let answer = files.message().await.unwrap().unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(found) = answer else {
        panic!("{answer:?}")
    };
    assert!(!found.file_descriptor_proto.is_empty());
    server.stop().await;
}
