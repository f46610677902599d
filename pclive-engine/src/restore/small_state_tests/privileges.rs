//! Credentials, filters and limits.

use super::*;

/// `BPF_RET | BPF_K` with `SECCOMP_RET_ALLOW`, after `padding` loads.
fn allow_all(padding: usize) -> SeccompFilter {
    let load = [0x20, 0, 0, 0, 0, 0, 0, 0];
    let allow = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let program = std::iter::repeat_n(load, padding).chain([allow]).flatten().collect();
    SeccompFilter { flags: 0, program }
}

#[test]
fn filters_that_are_missing_are_installed() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    wanted.seccomp_filters = vec![allow_all(0), allow_all(4000)];
    wanted.threads[0].seccomp = vec![0, 1];
    destination.restore(&wanted).unwrap();
    let mut found = destination.capture();
    assert_eq!((&found.seccomp_filters, &found.threads[0].seccomp), (&wanted.seccomp_filters, &vec![0, 1]));
    // A second restore finds them in place; a different beginning is refused.
    destination.restore(&found).unwrap();
    found.threads[0].seccomp = vec![1];
    assert!(matches!(destination.restore(&found), Err(RestoreStateError::Unfit { .. })));
}

/// What a runtime gives a container, on the way to an unprivileged user with one capability of its own.
fn few_capabilities() -> Capabilities {
    const CHOWN: u64 = 1;
    const NET_BIND: u64 = 1 << 10;
    Capabilities {
        inheritable: CHOWN,
        permitted: CHOWN | NET_BIND,
        effective: NET_BIND,
        bounding: CHOWN | NET_BIND | 1 << 3,
        ambient: CHOWN,
    }
}

#[test]
fn credentials_of_a_server_that_dropped_its_privileges_arrive() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    let credentials = &mut wanted.threads[0].credentials;
    credentials.uids = [33, 34, 35, 34];
    credentials.gids = [43, 44, 45, 44];
    credentials.groups = (100..300).collect();
    credentials.capabilities = few_capabilities();
    credentials.securebits = 1;
    wanted.threads[0].parent_death_signal = libc::SIGHUP;
    wanted.dumpable = 1;
    destination.restore(&wanted).unwrap();
    assert_same(&destination.capture(), &wanted);
}

#[test]
fn privileged_process_that_only_changed_its_effective_ids_can_come_back() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    let all = wanted.threads[0].credentials.capabilities.permitted;
    wanted.threads[0].credentials.uids = [0, 33, 0, 33];
    wanted.threads[0].credentials.capabilities.effective = 0;
    destination.restore(&wanted).unwrap();
    let found = destination.capture();
    assert_eq!(found.threads[0].credentials, wanted.threads[0].credentials);
    assert_eq!(found.threads[0].credentials.capabilities.permitted, all);
}

#[test]
fn privilege_that_the_created_container_lacks_is_named() {
    let privileged = Sleeper::new().capture();
    let mut destination = Sleeper::after(
        "exec setpriv --reuid 33 --regid 33 --clear-groups --inh-caps -all --bounding-set -all",
    );
    let wanted = destination.adapt(&privileged);
    let error = destination.restore(&wanted).unwrap_err();
    assert!(error.to_string().contains("bounding capabilities"), "{error}");

    let mut wanted = destination.capture();
    wanted.threads[0].credentials.uids = [0; 4];
    let error = destination.restore(&wanted).unwrap_err();
    assert!(matches!(error, RestoreStateError::Privilege { needs: "CAP_SETUID", .. }), "{error}");
}

#[test]
fn limit_that_cannot_be_raised_is_named() {
    let mut destination = Sleeper::after(
        "ulimit -n 300; exec setpriv --reuid 33 --regid 33 --clear-groups --inh-caps -all --bounding-set -all",
    );
    let mut wanted = destination.capture();
    wanted.rlimits[libc::RLIMIT_NOFILE as usize] = Rlimit { soft: 400, hard: 400 };
    match destination.restore(&wanted) {
        // An agent with CAP_SYS_RESOURCE does it from outside.
        Ok(()) => assert_eq!(destination.capture().rlimits, wanted.rlimits),
        Err(error) => assert!(error.to_string().contains("RLIMIT_NOFILE to 400"), "{error}"),
    }
}

#[test]
fn affinity_to_absent_cpus_is_cut_or_refused() {
    let mut destination = Sleeper::new();
    let mut wanted = destination.capture();
    let mut mask = vec![0; 64];
    mask[63] = 1;
    wanted.threads[0].scheduling.affinity = mask.clone();
    let error = destination.restore(&wanted).unwrap_err();
    assert!(matches!(error, RestoreStateError::Unfit { .. }), "{error}");
    mask[0] = 1;
    wanted.threads[0].scheduling.affinity = mask;
    let here = RegisterSet::of(destination.pid()).unwrap();
    let warnings = thread::restore(destination.captive(), &wanted, &wanted.threads[0], &here).unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(destination.capture().threads[0].scheduling.affinity, [1]);
}
