//! Credentials of a thread.
//!
//! Ids and groups are asked for in the thread, so that they are those of its user namespace; the capability sets
//! come from its status file.

use nix::Error;

use super::failure::{CaptureStateError, expect};
use crate::model::Vpid;
use crate::model::creds::Credentials;
use crate::proc::status::Status;
use crate::remote::{Answers, Batch, Piece, RemoteError, RemoteTask, Ticket};

/// Groups read along with everything else.
const FEW_GROUPS: usize = 128;
/// Groups read at most, when there are more; the kernel allows 65,536.
const MANY_GROUPS: usize = 16_384;
/// An invalid id: setfsuid(2) and setfsgid(2) change nothing and return the present one.
const NO_ID: u64 = u32::MAX as u64;

/// Calls that read ids, groups and securebits.
#[derive(Debug)]
pub(crate) struct CredentialsPlan {
    uids: (Piece, Ticket),
    gids: (Piece, Ticket),
    fs_uid: Ticket,
    fs_gid: Ticket,
    groups: (Piece, Ticket),
    securebits: Ticket,
}

impl CredentialsPlan {
    pub(crate) fn plan(batch: &mut Batch) -> Result<Self, RemoteError> {
        Ok(Self {
            uids: three_ids(batch, libc::SYS_getresuid)?,
            gids: three_ids(batch, libc::SYS_getresgid)?,
            fs_uid: batch.call(libc::SYS_setfsuid, &[NO_ID]),
            fs_gid: batch.call(libc::SYS_setfsgid, &[NO_ID]),
            groups: groups(batch, FEW_GROUPS)?,
            securebits: batch.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64]),
        })
    }

    /// May run a second batch, for a thread in very many groups.
    pub(crate) fn take(
        &self,
        answers: &Answers,
        task: &mut dyn RemoteTask,
        status: &Status,
    ) -> Result<Credentials, CaptureStateError> {
        let vpid = task.vpid();
        let fs_uid = expect(answers, self.fs_uid, vpid, "file system user id")? as u32;
        let fs_gid = expect(answers, self.fs_gid, vpid, "file system group id")? as u32;
        Ok(Credentials {
            uids: four_ids(answers, self.uids, fs_uid, vpid)?,
            gids: four_ids(answers, self.gids, fs_gid, vpid)?,
            groups: match take_groups(answers, self.groups) {
                Err(Error::EINVAL) => many_groups(task)?,
                result => {
                    result.map_err(|source| CaptureStateError::Call { vpid, what: "groups", source })?
                }
            },
            capabilities: status.capabilities,
            securebits: expect(answers, self.securebits, vpid, "securebits")? as u32,
            no_new_privs: status.no_new_privs,
        })
    }
}

fn three_ids(batch: &mut Batch, number: i64) -> Result<(Piece, Ticket), RemoteError> {
    let ids = batch.reserve(12)?;
    let at = ids.address();
    Ok((ids, batch.call(number, &[at, at + 4, at + 8])))
}

fn four_ids(
    answers: &Answers,
    (ids, ticket): (Piece, Ticket),
    fs: u32,
    vpid: Vpid,
) -> Result<[u32; 4], CaptureStateError> {
    expect(answers, ticket, vpid, "user and group ids")?;
    let mut words = answers.u32s(ids);
    let mut next = || words.next().unwrap_or_default();
    Ok([next(), next(), next(), fs])
}

fn groups(batch: &mut Batch, room: usize) -> Result<(Piece, Ticket), RemoteError> {
    let list = batch.reserve(room * 4)?;
    Ok((list, batch.call(libc::SYS_getgroups, &[room as u64, list.address()])))
}

fn take_groups(answers: &Answers, (list, ticket): (Piece, Ticket)) -> Result<Vec<u32>, Error> {
    let count = answers.result(ticket)?;
    Ok(answers.u32s(list).take(count as usize).collect())
}

fn many_groups(task: &mut dyn RemoteTask) -> Result<Vec<u32>, CaptureStateError> {
    let vpid = task.vpid();
    let mut batch = Batch::new(task);
    let plan = groups(&mut batch, MANY_GROUPS)?;
    let answers = batch.run(task)?;
    take_groups(&answers, plan).map_err(|source| CaptureStateError::Call { vpid, what: "groups", source })
}
