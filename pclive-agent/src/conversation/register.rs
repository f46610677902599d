//! Conversations that are on here as the destination, for lines that join them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pclive_proto::peer::{DestinationMessage, Join, SourceMessage};

use super::{Carrier, SLOTS};
use crate::error::{ErrorCode, MigrationError};
use crate::tls::Caller;

/// The lines of a destination.
pub(crate) type Receiving = Carrier<DestinationMessage, SourceMessage>;

/// By migration.
#[derive(Debug, Default)]
pub(crate) struct Register(Mutex<BTreeMap<String, Open>>);

#[derive(Debug)]
struct Open {
    carrier: Weak<Receiving>,
    /// Agent, as its certificate names it.
    source: String,
    /// Who has it may join.
    token: String,
}

impl Register {
    /// From now on lines may join.
    pub(crate) fn open(&self, migration: &str, source: &str, token: &str, carrier: &Arc<Receiving>) {
        let mut open = self.lock();
        open.retain(|_, open| open.carrier().is_some());
        let (source, token) = (source.into(), token.into());
        open.insert(migration.into(), Open { carrier: Arc::downgrade(carrier), source, token });
    }

    /// The conversation that a line wants to join.
    pub(crate) fn join(&self, caller: &Caller, join: &Join) -> Result<Arc<Receiving>, MigrationError> {
        let open = self.lock();
        let known = open.get(&join.migration_id).filter(|open| !open.token.is_empty());
        let unknown = || {
            let message = "the destination does not know the migration any more: its agent was restarted, or it has \
                           given up";
            MigrationError::new(ErrorCode::PeerLost, message)
        };
        let known = known.ok_or_else(unknown)?;
        caller.speaks_for(&known.source)?;
        let carrier = known.carrier().ok_or_else(unknown)?;
        if known.token != join.token {
            return Err(MigrationError::new(ErrorCode::AccessDenied, "the migration is another one's"));
        }
        if join.slot >= SLOTS {
            let message = format!("connection {} of a migration, which has {SLOTS} at most", join.slot);
            return Err(MigrationError::new(ErrorCode::BadMessage, message));
        }
        Ok(carrier)
    }

    /// Whether this migration comes from that source.
    pub(crate) fn is_from(&self, migration: &str, source: &str) -> bool {
        self.lock().get(migration).is_some_and(|open| open.source == source && open.carrier().is_some())
    }

    /// A panic elsewhere leaves it usable: every change is one step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn carrier(&self) -> Option<Arc<Receiving>> {
        self.carrier.upgrade().filter(|carrier| !carrier.closed.is_cancelled())
    }
}
