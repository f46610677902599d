//! The control service as users see it: over its unix socket, with health and reflection.

mod support;

use pclive_proto::control::{
    CancelMigrationRequest, CheckContainerRequest, Error, GetHostRequest, GetMigrationRequest,
    ListContainersRequest, ListMigrationsRequest, StartMigrationRequest, WatchMigrationRequest,
};
use support::Served;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

fn code(status: &Status) -> String {
    Error::from_status(status).expect("a structured error").code
}

#[tokio::test]
async fn a_host_tells_its_name_runtimes_and_features() {
    let served = Served::start().await;
    let host = served.control().await.get_host(GetHostRequest {}).await.unwrap().into_inner();
    assert_eq!(host.agent_name, "host-t");
    assert_eq!(host.runtimes, ["runc"]);
    assert!(!host.kernel_release.is_empty() && !host.features.is_empty());
}

#[tokio::test]
async fn an_agent_without_containers_lists_none_and_has_no_migrations() {
    let served = Served::start().await;
    let mut control = served.control().await;
    assert!(
        control.list_containers(ListContainersRequest {}).await.unwrap().into_inner().containers.is_empty()
    );
    assert!(
        control.list_migrations(ListMigrationsRequest {}).await.unwrap().into_inner().migrations.is_empty()
    );
}

#[tokio::test]
async fn what_does_not_exist_is_refused_with_a_structured_error() {
    let served = Served::start().await;
    let mut control = served.control().await;
    let check = CheckContainerRequest { container: "nobody".into(), ..Default::default() };
    let status = control.check_container(check).await.unwrap_err();
    assert_eq!((status.code(), code(&status).as_str()), (Code::NotFound, "container-not-found"));
    let migration_id = "nothing".to_owned();
    let status =
        control.get_migration(GetMigrationRequest { migration_id: migration_id.clone() }).await.unwrap_err();
    assert_eq!(code(&status), "migration-not-found");
    let status = control.watch_migration(WatchMigrationRequest { migration_id: migration_id.clone() }).await;
    assert_eq!(code(&status.unwrap_err()), "migration-not-found");
    let status = control.cancel_migration(CancelMigrationRequest { migration_id }).await.unwrap_err();
    assert_eq!(code(&status), "migration-not-found");
}

#[tokio::test]
async fn a_migration_to_nowhere_is_refused_at_once() {
    let served = Served::start().await;
    let mut control = served.control().await;
    let request = StartMigrationRequest {
        container: "web".into(),
        destination: "nowhere".into(),
        ..Default::default()
    };
    let status = control.start_migration(request.clone()).await.unwrap_err();
    assert_eq!(code(&status), "invalid-request");
    assert!(status.message().contains("nowhere"), "{status}");
    let request = StartMigrationRequest { destination: "127.0.0.1:1".into(), ..request };
    assert_eq!(code(&control.start_migration(request).await.unwrap_err()), "container-not-found");
}

#[tokio::test]
async fn health_follows_the_agent() {
    let served = Served::start().await;
    let mut health = HealthClient::new(served.channel().await);
    let request = HealthCheckRequest { service: "pclive.control.v1.Control".into() };
    let status = health.check(request.clone()).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    served.services.not_serving().await;
    let status = health.check(request).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let served = Served::start().await;
    let mut reflection = ServerReflectionClient::new(served.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await;
    let answer: ServerReflectionResponse = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for expected in ["pclive.control.v1.Control", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == expected), "{expected} in {names:?}");
    }
}

#[tokio::test]
async fn the_socket_is_gone_once_the_services_have_stopped() {
    let served = Served::start().await;
    let socket = served.agent.config.control.socket.clone();
    assert!(socket.exists());
    served.services.stop().await;
    assert!(!socket.exists());
}
