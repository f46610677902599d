//! The command line itself.

use crate::ctl::run_alone;

#[test]
fn wrong_usage_exits_with_2_and_asks_no_agent() {
    let cases = [
        &["migrate", "redis-1"][..],
        &["migrate", "redis-1", "--to", "host-b", "--strategy", "teleport"],
        &["migrate", "redis-1", "--to", "host-b", "--max-downtime", "300"],
        &["--agent", "host-b:7000", "list"],
        &["--agent", "https://host-b", "list"],
        &["certs", "issue", "kim", "--role", "emperor"],
        &["certs", "init", "--valid", "1000years"],
        &["frobnicate"],
        &[],
    ];
    for arguments in cases {
        let ended = run_alone(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    for arguments in [&["--help"][..], &["migrate", "--help"]] {
        let ended = run_alone(arguments);
        assert_eq!(ended.code, 0);
        for line in
            ["  0    migrated", "  1    the migration failed", "  2    wrong usage", "  3    it is not known"]
        {
            assert!(ended.out.contains(line), "{line:?} is not in:\n{}", ended.out);
        }
    }
}

#[test]
fn completions_need_no_agent() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run_alone(&["--agent", "/nowhere/agent.sock", "completions", shell]);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{shell}");
        assert!(ended.out.contains("allow-clock-step-back"), "{shell}");
    }
}
