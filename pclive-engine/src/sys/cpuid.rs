//! CPUID: where the components of the extended state are.

use std::arch::x86_64::__cpuid_count;

use crate::model::state::XstateComponent;

const XSTATE_LEAF: u32 = 0xd;

/// Place of component `number` (a bit of XCR0, 2 to 62) in the standard XSAVE format of this CPU; `None` if the
/// CPU does not have it.
pub fn xstate_component(number: u8) -> Option<XstateComponent> {
    if !(2..=62).contains(&number) {
        return None;
    }
    // SAFETY: CPUID exists on every x86-64 CPU; a leaf that a CPU lacks reads as some other leaf or as zeros, and
    // is only asked for when the kernel uses XSAVE.
    #[allow(unused_unsafe, reason = "a safe function in newer compilers")]
    let leaf = unsafe { __cpuid_count(XSTATE_LEAF, u32::from(number)) };
    (leaf.eax != 0).then_some(XstateComponent { number, offset: leaf.ebx, size: leaf.eax })
}
