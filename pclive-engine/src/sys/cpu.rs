//! What the CPU and the kernel let a task keep in extended registers.

use std::arch::x86_64::__cpuid;

/// XCR0: the extended state components that the kernel has switched on (Intel SDM volume 1, 13.3), 0 on a CPU
/// without XSAVE. Bits: 0 x87, 1 SSE, 2 AVX, 5-7 AVX-512, 9 PKRU, 17-18 AMX.
pub fn enabled_xstate() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    #[allow(unused_unsafe, reason = "safe to call in newer standard libraries")]
    // SAFETY: the CPUID instruction exists on every x86-64 CPU.
    let leaf = unsafe { __cpuid(1) };
    if leaf.ecx & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: CPUID says that the kernel has enabled XSAVE, so XGETBV is allowed in user mode; register 0 exists
    // wherever XSAVE does. It reads no memory and changes eax and edx only, which are named.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    (u64::from(high) << 32) | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x87_and_sse_are_always_enabled_where_xsave_is() {
        let mask = enabled_xstate();
        assert!(mask == 0 || mask & 0b11 == 0b11, "{mask:#x}");
    }
}
