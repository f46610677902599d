//! Registers: a thread keeps known values in the vector registers and spins, and looks whether they stay.

use std::arch::asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use pclive_tests::wait::until;

use crate::{Check, State};

pub(crate) const STATES: &[State] =
    &[("vector-registers", vector_registers), ("control-words", control_words)];

/// Turns of the spin loop between two looks.
const TURNS: u64 = 20_000_000;

/// Rounds without and with a difference.
#[derive(Debug, Default)]
struct Rounds {
    good: AtomicU64,
    bad: AtomicU64,
}

fn vector_registers() -> Result<Check> {
    ensure!(std::arch::is_x86_feature_detected!("avx2"), "this machine has no AVX2");
    let rounds = Arc::new(Rounds::default());
    let noted = Arc::clone(&rounds);
    crate::threads::spawn("registers", move || {
        let wide = std::arch::is_x86_feature_detected!("avx512f");
        for round in 0_u64.. {
            let right = if wide { spin_512(round) } else { spin_256(round) };
            let counter = if right { &noted.good } else { &noted.bad };
            counter.fetch_add(1, Ordering::SeqCst);
        }
    })?;
    Ok(Box::new(move || {
        let before = rounds.good.load(Ordering::SeqCst) + rounds.bad.load(Ordering::SeqCst);
        let now = || rounds.good.load(Ordering::SeqCst) + rounds.bad.load(Ordering::SeqCst);
        until("two more rounds", Duration::from_secs(30), || Ok(now() >= before + 2))?;
        let bad = rounds.bad.load(Ordering::SeqCst);
        ensure!(bad == 0, "vector registers changed in {bad} rounds");
        Ok(())
    }))
}

/// A value that the round and the place determine.
fn value(round: u64, index: usize) -> u64 {
    round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((index as u64) << 56) ^ index as u64
}

/// Keeps four 256-bit registers for [`TURNS`] turns; whether they stayed.
fn spin_256(round: u64) -> bool {
    let expected: [u64; 16] = std::array::from_fn(|index| value(round, index));
    let mut found = [0_u64; 16];
    // SAFETY: AVX was detected; the arrays are 128 bytes, which are read and written; every register that is used
    // is named; flags may change and the stack is not touched.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{from}]", "vmovdqu ymm7, [{from} + 32]",
            "vmovdqu ymm8, [{from} + 64]", "vmovdqu ymm15, [{from} + 96]",
            "2:", "dec {turns}", "jnz 2b",
            "vmovdqu [{to}], ymm0", "vmovdqu [{to} + 32], ymm7",
            "vmovdqu [{to} + 64], ymm8", "vmovdqu [{to} + 96], ymm15",
            from = in(reg) expected.as_ptr(), to = in(reg) found.as_mut_ptr(), turns = inout(reg) TURNS => _,
            out("ymm0") _, out("ymm7") _, out("ymm8") _, out("ymm15") _, options(nostack)
        );
    }
    found == expected
}

/// Keeps four 512-bit registers, two of them beyond the first sixteen, and a mask register.
fn spin_512(round: u64) -> bool {
    let expected: [u64; 33] = std::array::from_fn(|index| value(round, index) | u64::from(index == 32));
    let mut found = [0_u64; 33];
    // SAFETY: AVX-512F was detected; the arrays are 264 bytes, which are read and written; every register that is
    // used is named; flags may change and the stack is not touched.
    unsafe {
        asm!(
            "vmovdqu64 zmm1, [{from}]", "vmovdqu64 zmm14, [{from} + 64]",
            "vmovdqu64 zmm16, [{from} + 128]", "vmovdqu64 zmm31, [{from} + 192]",
            "kmovw k5, [{from} + 256]",
            "2:", "dec {turns}", "jnz 2b",
            "vmovdqu64 [{to}], zmm1", "vmovdqu64 [{to} + 64], zmm14",
            "vmovdqu64 [{to} + 128], zmm16", "vmovdqu64 [{to} + 192], zmm31",
            "kmovw [{to} + 256], k5",
            from = in(reg) expected.as_ptr(), to = in(reg) found.as_mut_ptr(), turns = inout(reg) TURNS => _,
            out("zmm1") _, out("zmm14") _, out("zmm16") _, out("zmm31") _, out("k5") _, options(nostack)
        );
    }
    found[..32] == expected[..32] && found[32] & 0xffff == expected[32] & 0xffff
}

/// The rounding and exception bits of SSE and x87.
fn control_words() -> Result<Check> {
    // Round towards zero, in both.
    let (sse, x87) = (0x7f80_u32, 0x0f7f_u16);
    set_control_words(sse, x87);
    Ok(Box::new(move || {
        let (now_sse, now_x87) = read_control_words();
        // The low six bits of MXCSR are the exceptions that have happened since.
        crate::same("control words", &(sse, x87), &(now_sse & !0x3f, now_x87))
    }))
}

fn set_control_words(sse: u32, x87: u16) {
    // SAFETY: the words are valid and mask every exception; this program computes nothing that rounding would
    // change in its meaning.
    unsafe {
        asm!("ldmxcsr [{sse}]", "fldcw [{x87}]", sse = in(reg) &raw const sse, x87 = in(reg) &raw const x87)
    };
}

fn read_control_words() -> (u32, u16) {
    let (mut sse, mut x87) = (0_u32, 0_u16);
    // SAFETY: stores into the two words.
    unsafe {
        asm!("stmxcsr [{sse}]", "fnstcw [{x87}]", sse = in(reg) &raw mut sse, x87 = in(reg) &raw mut x87)
    };
    (sse, x87)
}
