//! Connections with certificates: the right ones work; every wrong one is refused with its reason, and the agent
//! serves on.

mod support;

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pclive_agent::link::{self, PeerAddress};
use pclive_agent::tls::Keeper;
use pclive_proto::PROTOCOL_VERSION;
use pclive_proto::control::control_client::ControlClient;
use pclive_proto::control::{CancelMigrationRequest, Error, GetHostRequest, ListMigrationsRequest};
use pclive_proto::peer::destination_message::Message as Answer;
use pclive_proto::peer::source_message::Message;
use pclive_proto::peer::{HelloRequest, InquireRequest, Prepare, SourceMessage};
use pclive_tls::{Connector, Credentials, End, Fault, Files};
use rcgen::SanType;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use support::Served;
use support::authority::Authority;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

/// An agent named host-t with a certificate of `authority`, whose only peer is host-s; control on TCP as well.
async fn serve(authority: &Authority) -> Served {
    Served::start_with(|config, directory| {
        let files = authority.issue(&directory.join("tls"), "host-t");
        config.tls.ca = files.ca;
        config.peers.insert("host-s".into(), "10.0.0.1:7413".into());
        config.control.tcp = "127.0.0.1:0".into();
    })
    .await
}

/// What `link::connect` of an agent `name` with these files says to the served agent.
async fn hello(
    served: &Served,
    files: Files,
    name: &str,
    peer: &str,
) -> Result<(), (String, String, String)> {
    let mut config = served.agent.config.clone();
    (config.tls.ca, config.tls.certificate, config.tls.key) = (files.ca, files.certificate, files.key);
    config.agent.name = name.into();
    let keeper = Keeper::load(&config).expect("credentials that can be loaded");
    let address = served.peer_address().to_owned();
    let name_of_peer = if peer.is_empty() { address.clone() } else { peer.into() };
    let address = PeerAddress { name: name_of_peer, address };
    let connected = link::connect(&address, &config.peer, &config.migration, keeper.as_ref()).await;
    let mut client = connected.map_err(|e| (e.code.as_str().to_owned(), e.message, e.hint))?;
    let request = HelloRequest { protocol_version: PROTOCOL_VERSION, agent_name: name.into() };
    let answer = client.hello(request).await.map_err(|status| {
        let error = Error::from_status(&status).expect("a structured error");
        (error.code, error.message, error.hint)
    })?;
    assert_eq!(answer.into_inner().agent_name, "host-t");
    Ok(())
}

/// The served agent still takes who it should.
async fn serves_on(served: &Served, authority: &Authority) {
    let files = authority.issue(&served.path("again"), "host-s");
    hello(served, files, "host-s", "host-t").await.unwrap();
}

#[tokio::test]
async fn agents_with_certificates_of_one_ca_talk() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    serves_on(&served, &authority).await;
}

#[tokio::test]
async fn a_server_with_another_name_is_refused_with_both_names() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("s"), "host-s");
    let (code, message, hint) = hello(&served, files, "host-s", "host-x").await.unwrap_err();
    assert_eq!(code, "tls-failed");
    assert!(message.contains("not for host-x but for host-t") && !hint.is_empty(), "{message}");
    serves_on(&served, &authority).await;
}

#[tokio::test]
async fn a_peer_that_is_named_by_its_address_needs_the_address_in_its_certificate() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("s"), "host-s");
    let (code, message, hint) = hello(&served, files.clone(), "host-s", "").await.unwrap_err();
    assert_eq!(code, "tls-failed");
    assert!(message.contains("127.0.0.1") && message.contains("host-t"), "{message}");
    assert!(hint.contains("--address") && hint.contains("[peers]"), "{hint}");
    let served = Served::start_with(|config, directory| {
        let files = authority.issue_with(&directory.join("tls"), "host-t", |params| {
            params.subject_alt_names.push(SanType::DnsName("host-t".try_into().unwrap()));
            params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
        });
        config.tls.ca = files.ca;
        config.peer.accept_unlisted = true;
    })
    .await;
    hello(&served, files, "host-s", "").await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_not_a_peer_here_is_refused_by_name() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("x"), "host-x");
    let (code, message, hint) = hello(&served, files, "host-x", "host-t").await.unwrap_err();
    assert_eq!(code, "access-denied");
    assert!(message.contains("host-x") && hint.contains("accept_unlisted"), "{message}; {hint}");
    serves_on(&served, &authority).await;
}

#[tokio::test]
async fn an_agent_of_another_ca_is_refused_by_both_ends() {
    let (authority, other) = (Authority::new(), Authority::new());
    let served = serve(&authority).await;
    let files = other.issue(&served.path("s"), "host-s");
    let (code, message, hint) = hello(&served, files.clone(), "host-s", "host-t").await.unwrap_err();
    assert_eq!(code, "tls-failed");
    assert!(
        (message.contains("another CA") || message.contains("CA did not make")) && hint.contains("one CA"),
        "{message}"
    );
    // One that does not look at the server's certificate learns what the server thinks of its own.
    let trusting = Files { ca: authority.issue(&served.path("t"), "host-s").ca, ..files };
    let (_, message, _) = hello(&served, trusting, "host-s", "host-t").await.unwrap_err();
    assert!(message.contains("refused the certificate"), "{message}");
    serves_on(&served, &authority).await;
}

/// Shakes hands with a client of its own making; what the client learns.
async fn raw(
    served: &Served,
    files: &Files,
    certificate: bool,
    version: &'static rustls::SupportedProtocolVersion,
) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = if certificate {
        let chain = vec![rustls::pki_types::CertificateDer::from_pem_file(&files.certificate).unwrap()];
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&files.key).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(served.peer_address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let error = match connector.connect(ServerName::try_from("host-t").unwrap(), stream).await {
        Ok(mut stream) => stream.read_u8().await.expect_err("refused"),
        Err(error) => error,
    };
    Fault::of(&error, End::Client).unwrap_or_else(|| panic!("no TLS fault: {error:?}")).what
}

#[tokio::test]
async fn callers_without_a_certificate_with_an_expired_one_or_with_tls_1_2_are_refused() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("s"), "host-s");
    let tls13 = &rustls::version::TLS13;
    assert!(raw(&served, &files, false, tls13).await.contains("there is none"));
    assert!(raw(&served, &files, true, &rustls::version::TLS12).await.contains("TLS 1.3"));
    let expired = authority.issue_with(&served.path("e"), "host-s", |params| {
        params.subject_alt_names.push(SanType::DnsName("host-s".try_into().unwrap()));
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    assert!(raw(&served, &expired, true, tls13).await.contains("expired"));
    serves_on(&served, &authority).await;
}

#[tokio::test]
async fn expired_certificates_and_those_of_others_are_not_loaded() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let mut config = pclive_agent::config::Config::default();
    config.agent.name = "host-t".into();
    config.tls.ca = authority.issue(directory.path(), "host-t").ca;
    assert!(Keeper::load(&config).unwrap().is_some());
    config.tls.certificate = authority.issue(directory.path(), "host-u").certificate;
    config.tls.key = directory.path().join("host-u.key");
    let error = pclive_agent::error::chain(&Keeper::load(&config).unwrap_err());
    assert!(error.contains("host-t") && error.contains("host-u"), "{error}");
    config.tls.certificate = directory.path().join("host-t.pem");
    assert!(Keeper::load(&config).is_err(), "a key of another certificate");
    config.tls.key = directory.path().join("host-t.key");
    authority
        .issue_with(directory.path(), "host-t", |params| params.not_after = rcgen::date_time_ymd(2002, 1, 1));
    let error = pclive_agent::error::chain(&Keeper::load(&config).unwrap_err());
    assert!(error.contains("2002-01-01"), "{error}");
}

#[tokio::test]
async fn a_migration_under_another_agents_name_is_refused() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("s"), "host-s");
    let channel = channel(served.peer_address(), &files).await.unwrap();
    let mut client = pclive_proto::peer::peer_client::PeerClient::new(channel);
    let prepare =
        Prepare { protocol_version: PROTOCOL_VERSION, source_agent: "host-q".into(), ..Default::default() };
    let message = SourceMessage { message: Some(Message::Prepare(prepare)), place: 1 };
    let mut answers = client.migrate(tokio_stream::once(message)).await.unwrap().into_inner();
    let Some(Answer::Failure(failure)) = answers.message().await.unwrap().unwrap().message else {
        panic!("taken")
    };
    assert_eq!(failure.code, "access-denied");
    assert!(failure.message.contains("host-q") && failure.message.contains("host-s"), "{failure:?}");
}

#[tokio::test]
async fn what_became_of_a_migration_is_told_to_no_agent_under_anothers_name() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let files = authority.issue(&served.path("s"), "host-s");
    let channel = channel(served.peer_address(), &files).await.unwrap();
    let mut client = pclive_proto::peer::peer_client::PeerClient::new(channel);
    let mut ask = async |source_agent: &str| {
        let request = InquireRequest {
            protocol_version: PROTOCOL_VERSION,
            migration_id: "7b0a2c0c-96a4-4f52-9d2f-1d2f3c4b5a69".into(),
            container_id: "web".into(),
            source_agent: source_agent.into(),
            withdraw: false,
            renounce: false,
        };
        client.inquire(request).await
    };
    let status = ask("host-q").await.unwrap_err();
    assert_eq!(Error::from_status(&status).unwrap().code, "access-denied");
    assert!(ask("host-s").await.is_ok());
}

/// A channel to the served agent that shows this certificate.
async fn channel(address: &str, files: &Files) -> Result<Channel, tonic::transport::Error> {
    let connector = Connector::new(&Credentials::load(files).unwrap()).unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let open = tower::service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect((uri.host().unwrap(), uri.port_u16().unwrap())).await?;
            connector.connect("host-t", stream).await.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(open).await
}

#[tokio::test]
async fn viewers_look_operators_act_and_agents_do_neither() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let address = served.control.unwrap().to_string();
    let code = |status: tonic::Status| (status.code(), Error::from_status(&status).map(|error| error.code));
    let cancel = || CancelMigrationRequest { migration_id: "x".into() };
    let denied = (Code::PermissionDenied, Some("access-denied".to_owned()));

    let viewer = authority.issue_user(&served.path("v"), "kim", "viewer");
    let mut viewer = ControlClient::new(channel(&address, &viewer).await.unwrap());
    viewer.list_migrations(ListMigrationsRequest {}).await.unwrap();
    assert_eq!(code(viewer.cancel_migration(cancel()).await.unwrap_err()), denied);

    let operator = authority.issue_user(&served.path("o"), "lee", "operator");
    let mut client = ControlClient::new(channel(&address, &operator).await.unwrap());
    let answer = code(client.cancel_migration(cancel()).await.unwrap_err());
    assert_eq!(answer, (Code::NotFound, Some("migration-not-found".to_owned())));

    let agent = authority.issue(&served.path("s"), "host-s");
    let mut agent = ControlClient::new(channel(&address, &agent).await.unwrap());
    assert_eq!(code(agent.get_host(GetHostRequest {}).await.unwrap_err()), denied);
    let mut peer = pclive_proto::peer::peer_client::PeerClient::new(
        channel(served.peer_address(), &operator).await.unwrap(),
    );
    let hello = HelloRequest { protocol_version: PROTOCOL_VERSION, agent_name: "lee".into() };
    assert_eq!(code(peer.hello(hello).await.unwrap_err()), denied);
}

#[tokio::test]
async fn reloaded_certificates_serve_new_connections_and_broken_ones_change_nothing() {
    let (first, second) = (Authority::new(), Authority::new());
    let served = serve(&first).await;
    let keeper = served.agent.keeper.clone().unwrap();
    std::fs::write(served.path("tls/host-t.pem"), "broken").unwrap();
    let error = pclive_agent::error::chain(&keeper.reload().unwrap_err());
    assert!(error.contains("host-t.pem"), "{error}");
    serves_on(&served, &first).await;
    second.issue(&served.path("tls"), "host-t");
    keeper.reload().unwrap();
    serves_on(&served, &second).await;
    let files = first.issue(&served.path("old"), "host-s");
    assert_eq!(hello(&served, files, "host-s", "host-t").await.unwrap_err().0, "tls-failed");
}

#[tokio::test]
async fn plain_text_is_refused_and_a_caller_that_dawdles_holds_up_nobody() {
    let authority = Authority::new();
    let served = serve(&authority).await;
    let _silent = TcpStream::connect(served.peer_address()).await.unwrap();
    let mut config = served.agent.config.clone();
    config.peer.insecure = true;
    config.migration.connect_timeout_ms = 5_000;
    let address = PeerAddress { name: "host-t".into(), address: served.peer_address().into() };
    if let Ok(mut client) = link::connect(&address, &config.peer, &config.migration, None).await {
        let hello = HelloRequest { protocol_version: PROTOCOL_VERSION, agent_name: "host-s".into() };
        let answer = tokio::time::timeout(Duration::from_secs(20), client.hello(hello)).await;
        assert!(answer.expect("an end").is_err());
    }
    serves_on(&served, &authority).await;
}
