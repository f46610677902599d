//! The machine code that runs inside a task (x86-64).
//!
//! Two pieces. The *loop* walks an array of calls in the slot's data and ends by giving the task its own
//! registers back, in user mode, so that it goes on where it was even if the agent has died meanwhile:
//!
//! ```text
//!         lea  rbx, [calls]           entry: n+1, a1..a6, result      (8 x u64; first word 0 = end)
//! next:   mov  rcx, [rbx]
//!         jrcxz end
//!         lea  rax, [rcx-1]
//!         mov  rdi, rsi, rdx, r10, r8, r9 from [rbx+8 ..]
//!         syscall
//!         mov  [rbx+56], rax
//!         lea  rbx, [rbx+64]
//!         jmp  next
//! end:    mov  rax, rbx, rcx, rdx, rsi, rdi, r8 .. r11 from the saved block
//!         jmp  [saved rip]
//! ```
//!
//! The *stub* makes one call and ends in the same way; it lives in unused bytes of the vdso, for the time before
//! there is a slot and after it. Neither touches flags, stack or floating point state, and neither traps: an
//! `int3` or a single step would kill the task without its tracer.

use crate::model::RemoteAddr;

/// Words of the saved block, in order.
pub(super) const SAVED: [Register; 10] = [
    Register::Rax,
    Register::Rbx,
    Register::Rcx,
    Register::Rdx,
    Register::Rsi,
    Register::Rdi,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
];

/// Bytes of a saved block: the registers and the address to go on at.
pub(super) const SAVED_BYTES: usize = (SAVED.len() + 1) * 8;

/// Registers by their number in an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    /// rax
    Rax = 0,
    /// rcx
    Rcx = 1,
    /// rdx
    Rdx = 2,
    /// rbx
    Rbx = 3,
    /// rsi
    Rsi = 6,
    /// rdi
    Rdi = 7,
    /// r8
    R8 = 8,
    /// r9
    R9 = 9,
    /// r10
    R10 = 10,
    /// r11
    R11 = 11,
}

/// Assembles bytes for a known address.
struct Assembler {
    origin: u64,
    bytes: Vec<u8>,
}

impl Assembler {
    fn new(origin: RemoteAddr) -> Self {
        Self { origin: origin.0, bytes: Vec::with_capacity(256) }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An instruction that ends in a 32-bit displacement from its own end to `target`.
    fn relative(&mut self, opcode: &[u8], target: u64) {
        self.raw(opcode);
        let end = self.origin + self.bytes.len() as u64 + 4;
        // Code and data are pages of one mapping: the distance always fits.
        let displacement = target.wrapping_sub(end) as i32;
        self.raw(&displacement.to_le_bytes());
    }

    /// `mov register, [target]`
    fn load(&mut self, register: Register, target: u64) {
        let number = register as u8;
        self.relative(&[0x48 | (number >> 3) << 2, 0x8b, 0x05 | (number & 7) << 3], target);
    }

    /// The user-mode ending: registers from the saved block, then on to the saved address.
    fn ending(&mut self, saved: u64) {
        for (index, register) in SAVED.iter().enumerate() {
            self.load(*register, saved + index as u64 * 8);
        }
        self.relative(&[0xff, 0x25], saved + SAVED.len() as u64 * 8);
    }
}

/// The loop for code at `origin`, with its calls and saved block at the given addresses.
pub(super) fn call_loop(origin: RemoteAddr, calls: RemoteAddr, saved: RemoteAddr) -> Vec<u8> {
    let mut code = Assembler::new(origin);
    code.relative(&[0x48, 0x8d, 0x1d], calls.0); // lea rbx, [calls]
    let next = code.bytes.len();
    code.raw(&[0x48, 0x8b, 0x0b]); // mov rcx, [rbx]
    code.raw(&[0xe3, 0]); // jrcxz end
    let to_end = code.bytes.len();
    code.raw(&[0x48, 0x8d, 0x41, 0xff]); // lea rax, [rcx-1]
    code.raw(&[0x48, 0x8b, 0x7b, 8]); // mov rdi, [rbx+8]
    code.raw(&[0x48, 0x8b, 0x73, 16]); // mov rsi, [rbx+16]
    code.raw(&[0x48, 0x8b, 0x53, 24]); // mov rdx, [rbx+24]
    code.raw(&[0x4c, 0x8b, 0x53, 32]); // mov r10, [rbx+32]
    code.raw(&[0x4c, 0x8b, 0x43, 40]); // mov r8, [rbx+40]
    code.raw(&[0x4c, 0x8b, 0x4b, 48]); // mov r9, [rbx+48]
    code.raw(&[0x0f, 0x05]); // syscall
    code.raw(&[0x48, 0x89, 0x43, 56]); // mov [rbx+56], rax
    code.raw(&[0x48, 0x8d, 0x5b, 64]); // lea rbx, [rbx+64]
    let back = next as i64 - (code.bytes.len() as i64 + 2);
    code.raw(&[0xeb, back as i8 as u8]); // jmp next
    let end = code.bytes.len();
    code.bytes[to_end - 1] = (end - to_end) as u8;
    code.ending(saved.0);
    code.bytes
}

/// Bytes that a stub takes, with its saved block.
pub(super) const STUB_BYTES: usize = STUB_CODE_BYTES + SAVED_BYTES;
const STUB_CODE_BYTES: usize = 80;

/// A stub for code at `origin`: one `syscall` with whatever the registers hold, then the ending; its saved block
/// follows the code.
pub(super) fn stub(origin: RemoteAddr, saved: &[u8; SAVED_BYTES]) -> Vec<u8> {
    let mut code = Assembler::new(origin);
    code.raw(&[0x0f, 0x05]); // syscall
    code.ending(origin.0 + STUB_CODE_BYTES as u64);
    code.bytes.resize(STUB_CODE_BYTES, 0);
    code.raw(saved);
    code.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stub_fits_its_declared_size() {
        assert_eq!(stub(RemoteAddr(0x7fff_0000_0000), &[1; SAVED_BYTES]).len(), STUB_BYTES);
        let mut code = Assembler::new(RemoteAddr(0));
        code.raw(&[0x0f, 0x05]);
        code.ending(0);
        assert!(code.bytes.len() <= STUB_CODE_BYTES, "{}", code.bytes.len());
    }

    #[test]
    fn loads_encode_the_right_register_and_distance() {
        let mut code = Assembler::new(RemoteAddr(0x1000));
        code.load(Register::R11, 0x2000);
        // mov r11, [rip + 0xff9]
        assert_eq!(code.bytes, [0x4c, 0x8b, 0x1d, 0xf9, 0x0f, 0, 0]);
    }
}
