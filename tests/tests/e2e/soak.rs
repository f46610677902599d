//! The soak, for as long as a test may take.

use std::process::Command;

use anyhow::Result;
use pclive_tests::command::{output, workspace_binary};

use crate::ready;

#[test]
fn nothing_is_lost_under_random_faults() -> Result<()> {
    if !ready(&["redis-server", "nft"]) {
        return Ok(());
    }
    let said = output(Command::new(workspace_binary("soak")?).args(["--seconds", "45", "--seed", "7"]))?;
    eprintln!("{said}");
    Ok(())
}
