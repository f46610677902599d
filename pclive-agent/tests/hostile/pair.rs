//! Two agents, something hostile between them, and a container.

use std::time::{Duration, Instant};

use pclive_proto::control::{
    Error, GetMigrationRequest, Migration, Phase, Policy, StartMigrationRequest, Strategy,
};
use pclive_proto::peer::HelloRequest;

use crate::container::Container;
use crate::proxy::{Attack, Proxy};
use crate::support::Served;

/// Longest text that an agent repeats.
const MOST_TEXT: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Both hosts.
pub(crate) struct Pair {
    /// Goes first, also after a failure: what the runtime knows of it is in the hosts' directories.
    pub(crate) container: Container,
    pub(crate) a: Served,
    pub(crate) b: Served,
    pub(crate) proxy: Proxy,
    /// What did not go as it should, with the name of the attack.
    faults: Vec<String>,
    /// How far the last migration came.
    last: Phase,
}

async fn host(name: &'static str) -> Served {
    Served::start_with(|config, _| {
        config.agent.name = name.into();
        config.peer.insecure = true;
        config.migration.progress_timeout_ms = 4_000;
        config.migration.handover_timeout_ms = 4_000;
        config.migration.commit_grace_ms = 500;
        // A stream that is ended is not to be begun again.
        config.migration.reconnect_timeout_ms = 0;
    })
    .await
}

impl Pair {
    pub(crate) async fn start(name: &str) -> Self {
        // The created container's init is reaped by its agent.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let (a, b) = (host("host-a").await, host("host-b").await);
        let roots = [&a, &b].map(|host| host.path("runc"));
        let container = Container::start(name, roots);
        let proxy = Proxy::start(b.peer_address(), container.bundles[1].to_str().unwrap()).await;
        Self { container, a, b, proxy, faults: Vec::new(), last: Phase::Unspecified }
    }

    /// Migrates from a to b, until `over`.
    pub(crate) async fn migrate(&self, strategy: Strategy, over: impl Fn(&Migration) -> bool) -> Migration {
        let request = StartMigrationRequest {
            container: self.container.name.clone(),
            destination: self.proxy.address.clone(),
            strategy: strategy.into(),
            max_rounds: 3,
            policy: Policy::Cancel.into(),
            allow_clock_step_back: true,
            max_downtime_ms: 10_000,
            ..Default::default()
        };
        let migration_id = {
            let mut control = self.a.control().await;
            control.start_migration(request).await.unwrap().into_inner().migration_id
        };
        self.until(&migration_id, over).await
    }

    /// Waits for a migration of the source.
    pub(crate) async fn until(&self, id: &str, over: impl Fn(&Migration) -> bool) -> Migration {
        let mut control = self.a.control().await;
        let began = Instant::now();
        loop {
            let request = GetMigrationRequest { migration_id: id.into() };
            let migration = control.get_migration(request).await.unwrap().into_inner();
            if over(&migration) {
                return migration;
            }
            assert!(began.elapsed() < PATIENCE, "{migration:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A migration with an attack, which must fail with one of the `words`, and harm nobody.
    pub(crate) async fn refuses(&mut self, name: &str, words: &[&str], attack: Attack) {
        self.refuses_by(Strategy::Global, name, words, attack).await;
    }

    /// The same by another strategy.
    pub(crate) async fn refuses_by(
        &mut self,
        strategy: Strategy,
        name: &str,
        words: &[&str],
        attack: Attack,
    ) {
        self.proxy.prepare(attack);
        let ended =
            self.migrate(strategy, |migration| matches!(migration.phase(), Phase::Failed | Phase::Done));
        let ended = ended.await;
        self.proxy.prepare(Attack::default());
        let error = ended.error.clone().unwrap_or_default();
        self.last = error.phase();
        println!("{name}: {}: {}", error.code, error.message);
        if ended.phase() == Phase::Done {
            panic!("{name}: the container was moved");
        }
        self.complain(name, &error, words);
        self.unharmed(name).await;
    }

    /// How far the last migration came.
    pub(crate) fn last_phase(&self) -> Phase {
        self.last
    }

    fn complain(&mut self, name: &str, error: &Error, words: &[&str]) {
        let Error { code, message, hint, .. } = error;
        let clear = words.iter().any(|word| message.contains(word)) && code != "internal";
        let harmless = |text: &str| text.len() < MOST_TEXT && !text.contains(char::is_control);
        if !clear || !harmless(message) || !harmless(hint) {
            let shown: String = message.chars().take(400).collect();
            self.faults.push(format!("{name}: {code}: {shown:?}, not one of {words:?}"));
        }
    }

    /// Both agents serve, the container goes on where it was, and nothing of it is at the destination.
    pub(crate) async fn unharmed(&mut self, name: &str) {
        let request = HelloRequest { protocol_version: 1, agent_name: "host-a".into() };
        for host in [&self.a, &self.b] {
            host.peer().await.hello(request.clone()).await.unwrap();
        }
        self.container.await_beat();
        if !self.is_gone_from(1).await {
            self.faults.push(format!("{name}: the destination has something left"));
        }
    }

    /// Waits until a host's runtime has forgotten the container.
    async fn is_gone_from(&self, host: usize) -> bool {
        let began = Instant::now();
        while self.container.is_on(host) && began.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        !self.container.is_on(host)
    }

    /// After all of it the container can be moved like any other.
    pub(crate) async fn finish(self, attack: Attack) -> Migration {
        assert!(self.faults.is_empty(), "{:#?}", self.faults);
        self.proxy.prepare(attack);
        let ended = self
            .migrate(Strategy::Global, |migration| matches!(migration.phase(), Phase::Failed | Phase::Done));
        let ended = ended.await;
        assert_eq!(ended.phase(), Phase::Done, "{ended:?}");
        self.container.await_beat();
        assert!(self.container.is_on(1) && self.is_gone_from(0).await);
        ended
    }
}
