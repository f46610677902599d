//! The peer service against a source that does not behave: every refusal is a `Failure` that says why, and nothing
//! is created for it.

mod support;

use pclive_agent::error::{ErrorCode, MigrationError};
use pclive_agent::host;
use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::peer::destination_message::Message as Answer;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{
    Commit, Failure, HelloRequest, PageBatch, Prepare, RoundBegin, SourceMessage, Strategy,
};
use support::Served;

/// What the destination answers to these messages, which must be a refusal.
async fn refusal(served: &Served, messages: Vec<Message>) -> Failure {
    let stream =
        messages.into_iter().zip(1..).map(|(message, place)| SourceMessage { message: Some(message), place });
    let stream = tokio_stream::iter(stream.collect::<Vec<_>>());
    let mut answers = served.peer().await.migrate(stream).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().expect("an answer");
    // A conversation that has begun ends by a message of its own, then the stream ends.
    while let Some(last) = answers.message().await.unwrap() {
        assert!(matches!(last.message, Some(Answer::End(_))), "after a refusal: {last:?}");
    }
    assert!(!served.path("stdio").exists(), "nothing was created");
    match answer.message {
        Some(Answer::Failure(failure)) => failure,
        other => panic!("not refused: {other:?}"),
    }
}

fn prepare() -> Prepare {
    Prepare {
        protocol_version: PROTOCOL_VERSION,
        migration_id: "7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a69".into(),
        source_agent: "host-s".into(),
        container_id: "web".into(),
        runtime: "runc".into(),
        bundle: "/nonexistent/bundle".into(),
        strategy: Strategy::Global.into(),
        memory_bytes: 1 << 20,
        host: Some(host::facts().unwrap()),
        interfaces: Vec::new(),
        allow_clock_step_back: true,
        restore_after: 0,
        tail_token: String::new(),
        conversation_token: String::new(),
        verify: false,
        close_connections: false,
        keep_source_for_ms: 0,
    }
}

async fn refused(change: impl FnOnce(&mut Prepare)) -> Failure {
    let served = Served::start().await;
    let mut prepare = prepare();
    change(&mut prepare);
    let failure = refusal(&served, vec![Message::Prepare(prepare)]).await;
    assert_eq!((failure.role.as_str(), failure.phase.as_str()), ("destination", "negotiating"));
    failure
}

#[tokio::test]
async fn hello_tells_version_and_facts() {
    let served = Served::start().await;
    let request = HelloRequest { protocol_version: 99, agent_name: "stranger".into() };
    let answer = served.peer().await.hello(request).await.unwrap().into_inner();
    assert_eq!((answer.protocol_version, answer.agent_name.as_str()), (PROTOCOL_VERSION, "host-t"));
    assert!(answer.host.is_some_and(|host| host.memory_available_bytes > 0));
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_named() {
    let failure = refused(|prepare| prepare.protocol_version = 99).await;
    assert_eq!(failure.code, "protocol-mismatch");
    assert!(failure.message.contains("99") && failure.message.contains(&PROTOCOL_VERSION.to_string()));
}

#[tokio::test]
async fn a_missing_bundle_is_refused_with_its_path() {
    let failure = refused(|_| {}).await;
    assert_eq!(failure.code, "bundle-missing");
    assert!(
        failure.message.contains("/nonexistent/bundle") && failure.message.contains("host-t"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    for (code, change) in [
        ("bad-message", (|p| p.migration_id = "../../x".into()) as fn(&mut Prepare)),
        ("invalid-request", |p| p.container_id = "../etc".into()),
        ("runtime-unknown", |p| p.runtime = "crun".into()),
        ("bad-message", |p| p.strategy = 77),
        ("bad-message", |p| p.host = None),
        ("no-memory", |p| p.memory_bytes = u64::MAX),
        ("bad-message", |p| p.bundle = "relative".into()),
        ("bad-message", |p| p.interfaces = vec![Default::default()]),
    ] {
        assert_eq!(refused(change).await.code, code);
    }
}

#[tokio::test]
async fn a_host_that_lacks_registers_of_the_source_refuses() {
    let failure = refused(|prepare| {
        if let Some(host) = &mut prepare.host {
            host.xstate_features |= 1 << 62;
        }
    });
    let failure = failure.await;
    assert_eq!(failure.code, "incompatible-host");
    assert!(failure.message.contains("0x4000000000000000"), "{failure:?}");
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused() {
    let served = Served::start().await;
    std::fs::create_dir_all(served.path("runc/web")).unwrap();
    let failure = refusal(&served, vec![Message::Prepare(prepare())]).await;
    assert_eq!(failure.code, "name-taken");
}

#[tokio::test]
async fn anything_but_prepare_first_is_refused() {
    let served = Served::start().await;
    for message in [
        Message::Commit(Commit {}),
        Message::RoundBegin(RoundBegin::default()),
        Message::PageBatch(PageBatch::default()),
    ] {
        assert_eq!(refusal(&served, vec![message]).await.code, "bad-message");
    }
}

#[tokio::test]
async fn a_refused_migration_leaves_no_entry() {
    let served = Served::start().await;
    refusal(&served, vec![Message::Prepare(prepare())]).await;
    assert!(served.agent.registry.list().is_empty());
}

#[tokio::test]
async fn an_agent_that_goes_down_takes_no_migration() {
    let served = Served::start().await;
    served.agent.registry.close(&MigrationError::new(ErrorCode::ShuttingDown, "going down"));
    let bundle = served.path("bundle");
    std::fs::create_dir_all(&bundle).unwrap();
    let namespaces = ["pid", "network", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({ "ociVersion": "1.0.2", "linux": { "namespaces": namespaces } });
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let request = Prepare { bundle: bundle.to_string_lossy().into_owned(), ..prepare() };
    let failure = refusal(&served, vec![Message::Prepare(request)]).await;
    assert_eq!((failure.code.as_str(), failure.retryable), ("shutting-down", true));
}

/// Bytes that are no HTTP/2 end their connection, not the service.
#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = Served::start().await;
    let mut raw = tokio::net::TcpStream::connect(served.peer_address()).await.unwrap();
    raw.write_all(&[0x16; 4096]).await.unwrap();
    let mut rest = Vec::new();
    // Closed by the agent, with or without a word.
    let _ = raw.read_to_end(&mut rest).await;
    let request = HelloRequest { protocol_version: 1, agent_name: "host-s".into() };
    assert!(served.peer().await.hello(request).await.is_ok());
}
