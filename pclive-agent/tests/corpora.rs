//! What fuzzers have collected is read without a panic: the corpora of `fuzz/`, as ordinary tests.

use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library for the fuzzers")]
mod fuzz;

/// Reads a target's corpus; how many inputs it has.
fn read(name: &str, target: fuzz::Target) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let inputs = std::fs::read_dir(&folder).expect("a corpus").map(|input| input.unwrap().path());
    inputs.map(|input| target(&std::fs::read(input).unwrap())).count()
}

#[test]
fn no_input_of_the_corpora_is_too_much_for_its_reader() {
    for (name, target) in fuzz::TARGETS {
        assert!(read(name, target) > 10, "hardly any input for {name}");
    }
}
