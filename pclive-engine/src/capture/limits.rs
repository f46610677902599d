//! Resource limits, asked for in the process: prlimit(2) from outside needs CAP_SYS_RESOURCE.

use super::failure::{CaptureStateError, expect};
use crate::model::Vpid;
use crate::model::state::Rlimit;
use crate::remote::{Answers, Batch, Piece, RemoteError, Ticket};

/// `RLIM_NLIMITS`.
pub(crate) const LIMITS: usize = 16;

/// Calls that read the limits.
#[derive(Debug)]
pub(crate) struct LimitsPlan(Vec<(Piece, Ticket)>);

impl LimitsPlan {
    pub(crate) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        let mut read = |resource: usize| {
            let limit = batch.reserve(16)?;
            Ok((limit, batch.call(libc::SYS_prlimit64, &[0, resource as u64, 0, limit.address()])))
        };
        (0..LIMITS).map(&mut read).collect::<Result<_, RemoteError>>().map(Self)
    }

    pub(crate) fn take(&self, answers: &Answers, vpid: Vpid) -> Result<Vec<Rlimit>, CaptureStateError> {
        let limit = |(piece, ticket): &(Piece, Ticket)| {
            expect(answers, *ticket, vpid, "resource limits")?;
            let mut words = answers.u64s(*piece);
            let mut next = || words.next().unwrap_or_default();
            Ok(Rlimit { soft: next(), hard: next() })
        };
        self.0.iter().map(limit).collect()
    }
}
