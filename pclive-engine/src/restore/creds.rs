//! Credentials of a thread: from those of the created container to those of the source.
//!
//! Whatever the source's program did to its credentials after its start, the created container may do as well,
//! because it starts with the same privileges. The order keeps every privilege until it is no longer needed:
//!
//! 1. all permitted capabilities become effective, the inheritable ones are set;
//! 2. the bounding set shrinks (needs CAP_SETPCAP);
//! 3. groups and group ids (CAP_SETGID), with "keep capabilities" on; then user ids (CAP_SETUID);
//! 4. again all permitted capabilities become effective: a change of the user id has cleared them;
//! 5. ambient set, securebits (CAP_SETPCAP), the final capability sets, no_new_privs.
//!
//! setresuid(2) and capset(2) also reset the dumpable flag and the parent death signal, which therefore come later.
//! What the kernel made of it is read back and compared.

use nix::Error;

use super::failure::RestoreStateError;
use crate::capture::creds::CredentialsPlan;
use crate::capture::failure::read_text;
use crate::model::Vpid;
use crate::model::creds::{Capabilities, Credentials};
use crate::proc::status;
use crate::remote::{Batch, RemoteTask, Ticket};

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// `PR_CAP_AMBIENT` and its operations. Linux 4.3.
const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
/// `SECBIT_KEEP_CAPS`: set without privilege by `PR_SET_KEEPCAPS`.
const KEEP_CAPS: u32 = 1 << 4;
/// NGROUPS_MAX is 65,536; so many fit the scratch memory.
const MAX_GROUPS: usize = 16_384;

/// Reads what a thread has now.
pub(super) fn read(task: &mut dyn RemoteTask) -> Result<Credentials, RestoreStateError> {
    let mut batch = Batch::new(task);
    let plan = CredentialsPlan::plan(&mut batch)?;
    let answers = batch.run(task)?;
    let status = read_text(task.pid(), "status", status::parse)?;
    Ok(plan.take(&answers, task, &status)?)
}

/// Makes the credentials `wanted` out of `present`, which the thread has. No call is made if they are equal.
pub(super) fn restore(
    task: &mut dyn RemoteTask,
    present: &Credentials,
    wanted: &Credentials,
) -> Result<(), RestoreStateError> {
    if present == wanted {
        return Ok(());
    }
    check(task.vpid(), present, wanted)?;
    let mut steps = Steps { batch: Batch::new(task), named: Vec::new() };
    steps.gather(present, wanted)?;
    steps.groups(present, wanted)?;
    steps.users(present, wanted);
    steps.settle(present, wanted)?;
    let Steps { batch, named } = steps;
    let answers = batch.run(task)?;
    for (ticket, what, needs) in named {
        if let Err(source) = answers.result(ticket) {
            return Err(refused(task.vpid(), what, needs, source));
        }
    }
    compare(task.vpid(), &read(task)?, wanted)
}

fn refused(vpid: Vpid, what: String, needs: &'static str, source: Error) -> RestoreStateError {
    if source == Error::EPERM {
        return RestoreStateError::Privilege { vpid, what, needs, source };
    }
    RestoreStateError::Call { vpid, what, source }
}

/// What can be known to fail before anything is changed.
fn check(vpid: Vpid, present: &Credentials, wanted: &Credentials) -> Result<(), RestoreStateError> {
    if wanted.groups.len() > MAX_GROUPS {
        let what = format!("{} supplementary groups", wanted.groups.len());
        return Err(RestoreStateError::Invalid { vpid, what });
    }
    let lacking = |what: &str, have: u64, want: u64| {
        (want & !have != 0).then(|| format!("the {what} capabilities {:#x}", want & !have))
    };
    let (have, want) = (&present.capabilities, &wanted.capabilities);
    let missing = lacking("bounding", have.bounding, want.bounding)
        .or_else(|| lacking("permitted", have.permitted, want.permitted))
        .or_else(|| {
            let undone = present.no_new_privs && !wanted.no_new_privs;
            undone.then(|| "that no_new_privs is off".into())
        });
    match missing {
        None => Ok(()),
        Some(what) => Err(RestoreStateError::Unfit {
            vpid,
            what: format!(
                "{what}, which the created container lacks; create it from the source's configuration"
            ),
        }),
    }
}

/// The calls, each with what it is for and the privilege that it may need.
#[derive(Debug)]
struct Steps {
    batch: Batch,
    named: Vec<(Ticket, String, &'static str)>,
}

impl Steps {
    fn call(&mut self, number: i64, arguments: &[u64], what: String, needs: &'static str) {
        let ticket = self.batch.call(number, arguments);
        self.named.push((ticket, what, needs));
    }

    fn capset(&mut self, sets: Capabilities, what: &str) -> Result<(), RestoreStateError> {
        let header = [CAPABILITY_VERSION.to_ne_bytes(), [0; 4]];
        let header = self.batch.place(header.as_flattened())?;
        let halves = |shift: u32| {
            [sets.effective, sets.permitted, sets.inheritable]
                .map(|set| ((set >> shift) as u32).to_ne_bytes())
        };
        let data = self.batch.place([halves(0), halves(32)].as_flattened().as_flattened())?;
        let arguments = [header.address(), data.address()];
        self.call(libc::SYS_capset, &arguments, format!("set the {what} capabilities"), "CAP_SETPCAP");
        Ok(())
    }

    fn prctl(&mut self, arguments: &[u64], what: String) {
        self.call(libc::SYS_prctl, arguments, what, "CAP_SETPCAP");
    }

    /// Steps 1 and 2.
    fn gather(&mut self, present: &Credentials, wanted: &Credentials) -> Result<(), RestoreStateError> {
        self.capset(everything(present, wanted), "inheritable")?;
        let dropped = present.capabilities.bounding & !wanted.capabilities.bounding;
        for capability in (0..64u64).filter(|capability| dropped & 1 << capability != 0) {
            let what = format!("drop capability {capability} from the bounding set");
            self.prctl(&[libc::PR_CAPBSET_DROP as u64, capability], what);
        }
        Ok(())
    }

    /// The first half of step 3.
    fn groups(&mut self, present: &Credentials, wanted: &Credentials) -> Result<(), RestoreStateError> {
        if present.groups != wanted.groups {
            let bytes: Vec<u8> = wanted.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            let list = self.batch.place(&bytes)?;
            let what = "set the supplementary groups".into();
            let arguments = [wanted.groups.len() as u64, list.address()];
            self.call(libc::SYS_setgroups, &arguments, what, "CAP_SETGID");
        }
        if present.gids != wanted.gids {
            let [real, effective, saved, fs] = wanted.gids.map(u64::from);
            let what = format!("set the group ids to {real}, {effective}, {saved}");
            self.call(libc::SYS_setresgid, &[real, effective, saved], what, "CAP_SETGID");
            self.batch.call(libc::SYS_setfsgid, &[fs]);
        }
        Ok(())
    }

    /// The second half of step 3. That the file system ids took effect shows when all is read back.
    fn users(&mut self, present: &Credentials, wanted: &Credentials) {
        if present.uids == wanted.uids {
            return;
        }
        if present.securebits & KEEP_CAPS == 0 {
            self.prctl(&[libc::PR_SET_KEEPCAPS as u64, 1], "keep the capabilities".into());
        }
        let [real, effective, saved, fs] = wanted.uids.map(u64::from);
        let what = format!("set the user ids to {real}, {effective}, {saved}");
        self.call(libc::SYS_setresuid, &[real, effective, saved], what, "CAP_SETUID");
        self.batch.call(libc::SYS_setfsuid, &[fs]);
    }

    /// Steps 4 and 5.
    fn settle(&mut self, present: &Credentials, wanted: &Credentials) -> Result<(), RestoreStateError> {
        self.capset(everything(present, wanted), "permitted")?;
        self.prctl(&[PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0], "clear the ambient set".into());
        for capability in (0..64u64).filter(|capability| wanted.capabilities.ambient & 1 << capability != 0) {
            let what = format!("add capability {capability} to the ambient set");
            self.prctl(&[PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0], what);
        }
        if (present.securebits ^ wanted.securebits) & !KEEP_CAPS != 0 {
            let what = format!("set the securebits to {:#x}", wanted.securebits);
            self.prctl(&[libc::PR_SET_SECUREBITS as u64, u64::from(wanted.securebits)], what);
        } else if present.uids != wanted.uids || present.securebits != wanted.securebits {
            let keep = u64::from(wanted.securebits & KEEP_CAPS != 0);
            self.prctl(&[libc::PR_SET_KEEPCAPS as u64, keep], "set the flag to keep capabilities".into());
        }
        self.capset(wanted.capabilities, "final")?;
        if wanted.no_new_privs && !present.no_new_privs {
            self.prctl(&[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0], "set no_new_privs".into());
        }
        Ok(())
    }
}

/// All that the thread may have: the privileges that the steps use.
fn everything(present: &Credentials, wanted: &Credentials) -> Capabilities {
    let permitted = present.capabilities.permitted;
    Capabilities {
        inheritable: wanted.capabilities.inheritable,
        permitted,
        effective: permitted,
        ..wanted.capabilities
    }
}

fn compare(vpid: Vpid, present: &Credentials, wanted: &Credentials) -> Result<(), RestoreStateError> {
    if present == wanted {
        return Ok(());
    }
    let what = format!("the credentials {wanted:?}, but the kernel made them {present:?}");
    Err(RestoreStateError::Unfit { vpid, what })
}
