//! A small assembler for BPF: programs this short are easier to read as instructions than a compiler is to carry along.
//!
//! Registers: 0 results, 1 to 5 arguments, 6 to 9 the program's own, 10 the top of the stack
//! (Documentation/bpf/standardization/instruction-set.rst).

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

use super::bpf::{Insn, Map};

/// The register with the top of the stack.
pub const STACK: u8 = 10;
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_MAP_UPDATE: i32 = 2;
const HELPER_MAP_DELETE: i32 = 3;
const HELPER_RINGBUF_OUTPUT: i32 = 130;
/// Of a report: nobody is woken by it.
const BPF_RB_NO_WAKEUP: i32 = 1;

/// Instructions with labels in place of jump offsets.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Insn>,
    labels: HashMap<&'static str, usize>,
    jumps: Vec<(usize, &'static str)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Insn { code, registers: from << 4 | to, offset, immediate });
    }

    /// A register's value into another.
    pub fn mov(&mut self, to: u8, from: u8) {
        self.emit(0xbf, to, from, 0, 0);
    }

    /// A constant, sign-extended.
    pub fn constant(&mut self, to: u8, value: i32) {
        self.emit(0xb7, to, 0, 0, value);
    }

    /// A constant of 8 bytes.
    pub fn constant64(&mut self, to: u8, value: u64) {
        self.emit(0x18, to, 0, 0, (value as u32).cast_signed());
        self.emit(0, 0, 0, 0, ((value >> 32) as u32).cast_signed());
    }

    /// Two bytes from the machine's order to the network's, or back; the others become 0.
    pub fn network16(&mut self, to: u8) {
        self.emit(0xdc, to, 0, 0, 16);
    }

    /// Four bytes from the machine's order to the network's, or back; the others become 0.
    pub fn network32(&mut self, to: u8) {
        self.emit(0xdc, to, 0, 0, 32);
    }

    /// Adds a register.
    pub fn add(&mut self, to: u8, from: u8) {
        self.emit(0x0f, to, from, 0, 0);
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, to: u8, value: i32) {
        self.emit(0x07, to, 0, 0, value);
    }

    /// Takes a register away.
    pub fn subtract(&mut self, to: u8, from: u8) {
        self.emit(0x1f, to, from, 0, 0);
    }

    /// Adds a register to 4 bytes of memory that others may add to.
    pub fn atomic_add32(&mut self, base: u8, from: u8, offset: i16) {
        self.emit(0xc3, base, from, offset, 0);
    }

    /// Adds a register to 8 bytes of memory that others may add to.
    pub fn atomic_add64(&mut self, base: u8, from: u8, offset: i16) {
        self.emit(0xdb, base, from, offset, 0);
    }

    /// Keeps the bits of a constant.
    pub fn and(&mut self, to: u8, value: i32) {
        self.emit(0x57, to, 0, 0, value);
    }

    /// Sets the bits of a constant, sign-extended.
    pub fn or(&mut self, to: u8, value: i32) {
        self.emit(0x47, to, 0, 0, value);
    }

    /// Multiplies by a constant, sign-extended.
    pub fn multiply(&mut self, to: u8, value: i32) {
        self.emit(0x27, to, 0, 0, value);
    }

    /// Keeps the bits that differ from those of a register.
    pub fn xor(&mut self, to: u8, from: u8) {
        self.emit(0xaf, to, from, 0, 0);
    }

    /// Shifts by a constant.
    pub fn shift_left(&mut self, to: u8, by: i32) {
        self.emit(0x67, to, 0, 0, by);
    }

    /// Shifts by a constant, zeroes in.
    pub fn shift_right(&mut self, to: u8, by: i32) {
        self.emit(0x77, to, 0, 0, by);
    }

    /// Shifts by a register, zeroes in.
    pub fn shift_right_by(&mut self, to: u8, by: u8) {
        self.emit(0x7f, to, by, 0, 0);
    }

    /// Loads 4 bytes.
    pub fn load32(&mut self, to: u8, base: u8, offset: i16) {
        self.emit(0x61, to, base, offset, 0);
    }

    /// Loads 8 bytes.
    pub fn load64(&mut self, to: u8, base: u8, offset: i16) {
        self.emit(0x79, to, base, offset, 0);
    }

    /// Loads 2 bytes.
    pub fn load16(&mut self, to: u8, base: u8, offset: i16) {
        self.emit(0x69, to, base, offset, 0);
    }

    /// Loads a byte.
    pub fn load8(&mut self, to: u8, base: u8, offset: i16) {
        self.emit(0x71, to, base, offset, 0);
    }

    /// Stores 4 bytes of a register.
    pub fn store32(&mut self, base: u8, from: u8, offset: i16) {
        self.emit(0x63, base, from, offset, 0);
    }

    /// Stores 8 bytes of a register.
    pub fn store64(&mut self, base: u8, from: u8, offset: i16) {
        self.emit(0x7b, base, from, offset, 0);
    }

    /// Stores a constant of 4 bytes on the stack.
    pub fn store_constant(&mut self, offset: i16, value: i32) {
        self.emit(0x62, STACK, 0, offset, value);
    }

    /// Calls a helper by its number (linux/bpf.h, `enum bpf_func_id`). Registers 1 to 5 are lost.
    pub fn call(&mut self, helper: i32) {
        self.emit(0x85, 0, 0, 0, helper);
    }

    /// Ends the program: register 0 is what it says.
    pub fn exit(&mut self) {
        self.emit(0x95, 0, 0, 0, 0);
    }

    /// The value of a key that lies on the stack: register 0, 0 when there is none.
    pub fn look_up(&mut self, map: &Map, key: i16) {
        self.map_and_key(map, key);
        self.call(HELPER_MAP_LOOKUP);
    }

    /// Sets the value of a key; both lie on the stack.
    pub fn update(&mut self, map: &Map, key: i16, value: i16) {
        self.map_and_key(map, key);
        self.mov(3, STACK);
        self.add_constant(3, i32::from(value));
        self.constant(4, 0);
        self.call(HELPER_MAP_UPDATE);
    }

    /// Deletes a key that lies on the stack, if it is there.
    pub fn delete(&mut self, map: &Map, key: i16) {
        self.map_and_key(map, key);
        self.call(HELPER_MAP_DELETE);
    }

    /// Reports so many bytes of the stack: register 0, 0 unless there was no room.
    pub fn report(&mut self, map: &Map, from: i16, bytes: u16) {
        self.map_and_key(map, from);
        self.constant(3, bytes.into());
        self.constant(4, BPF_RB_NO_WAKEUP);
        self.call(HELPER_RINGBUF_OUTPUT);
    }

    /// The map in register 1, a place on the stack in register 2.
    fn map_and_key(&mut self, map: &Map, key: i16) {
        // BPF_PSEUDO_MAP_FD: the loader puts the map in place of its descriptor.
        self.emit(0x18, 1, 1, 0, map.as_fd().as_raw_fd());
        self.emit(0, 0, 0, 0, 0);
        self.mov(2, STACK);
        self.add_constant(2, i32::from(key));
    }

    /// Goes to a label.
    pub fn jump(&mut self, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x05, 0, 0, 0, 0);
    }

    /// Goes to a label if a register has this value.
    pub fn jump_if_equal(&mut self, register: u8, value: i32, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x15, register, 0, 0, value);
    }

    /// Goes to a label unless a register has this value.
    pub fn jump_unless_equal(&mut self, register: u8, value: i32, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x55, register, 0, 0, value);
    }

    /// Goes to a label unless two registers have one value.
    pub fn jump_unless_same(&mut self, one: u8, other: u8, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x5d, one, other, 0, 0);
    }

    /// Goes to a label if a register is greater than a constant, without regard to signs.
    pub fn jump_if_greater(&mut self, register: u8, value: i32, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x25, register, 0, 0, value);
    }

    /// Goes to a label if a register is less than a constant, without regard to signs.
    pub fn jump_if_less(&mut self, register: u8, value: i32, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0xa5, register, 0, 0, value);
    }

    /// Goes to a label if one register is greater than another, without regard to signs.
    pub fn jump_if_more(&mut self, one: u8, other: u8, label: &'static str) {
        self.jumps.push((self.code.len(), label));
        self.emit(0x2d, one, other, 0, 0);
    }

    /// Where it has come to, for [`Assembler::aim`].
    pub(super) fn here(&self) -> usize {
        self.code.len()
    }

    /// Lets a jump without a label, emitted as number `at`, lead to number `to`.
    pub(super) fn aim(&mut self, at: usize, to: usize) {
        let distance = to.cast_signed() - at.cast_signed() - 1;
        self.code[at].offset = i16::try_from(distance).unwrap_or(i16::MAX);
    }

    /// One instruction as it is.
    pub(super) fn raw(&mut self, code: u8, to: u8, from: u8, immediate: i32) {
        self.emit(code, to, from, 0, immediate);
    }

    /// What follows is here.
    pub fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.code.len());
    }

    /// The program, its jumps resolved.
    pub fn finish(mut self) -> Vec<Insn> {
        for (at, label) in &self.jumps {
            // Without its label a jump goes nowhere, which the verifier refuses.
            let to = self.labels.get(label).copied().unwrap_or(*at);
            let distance = to.cast_signed() - at.cast_signed() - 1;
            self.code[*at].offset = i16::try_from(distance).unwrap_or(i16::MAX);
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels() {
        let mut a = Assembler::default();
        a.label("start");
        a.jump("end");
        a.constant(0, 0);
        a.jump_if_equal(0, 5, "start");
        a.label("end");
        a.exit();
        let code = a.finish();
        assert_eq!(code.iter().map(|i| i.offset).collect::<Vec<_>>(), [2, 0, -3, 0]);
        assert_eq!(code[2], Insn { code: 0x15, registers: 0, offset: -3, immediate: 5 });
    }
}
