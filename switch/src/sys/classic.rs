//! Classic socket filters as part of a larger program: the kernel's own translation (`bpf_convert_filter`, net/core/filter.c), as
//! far as swd's filters need it.
//!
//! The accumulator is register 0, the index is register 7; register 8 is lost, and so are 1 to 5. Register 6 must hold the
//! context, as both kinds of programs have it.

use libc::sock_filter;

use super::assembler::Assembler;

const A: u8 = 0;
const X: u8 = 7;
const KEPT: u8 = 8;
const CX: u8 = 6;
const SCRATCH: u8 = 2;

const SKF_AD_OFF: u32 = 0xffff_f000;
const SKF_AD_PKTTYPE: u32 = 4;
const SKF_AD_VLAN_TAG_PRESENT: u32 = 48;
/// Offsets of the same in `struct __sk_buff`.
const PKT_TYPE: i16 = 4;
const VLAN_PRESENT: i16 = 20;

/// Appends `program`: where it lets in, it goes to the label `taken`, else to `refused`. `None` for an instruction that is
/// not known here; what was appended until then is worth nothing.
pub fn append(
    a: &mut Assembler,
    program: &[sock_filter],
    taken: &'static str,
    refused: &'static str,
) -> Option<()> {
    let reached = reached(program);
    let mut starts = Vec::with_capacity(program.len() + 1);
    let mut jumps = Vec::new();
    for (at, op) in program.iter().enumerate() {
        starts.push(a.here());
        // The verifier refuses what is never run.
        if !*reached.get(at)? {
            continue;
        }
        let (code, k) = (u32::from(op.code), op.k);
        let constant = k.cast_signed();
        match (code & 7, code) {
            (libc::BPF_LD, _) if code & 0xe0 == libc::BPF_ABS && k >= SKF_AD_OFF => match k - SKF_AD_OFF {
                SKF_AD_PKTTYPE => a.load32(A, CX, PKT_TYPE),
                SKF_AD_VLAN_TAG_PRESENT => a.load32(A, CX, VLAN_PRESENT),
                _ => return None,
            },
            (libc::BPF_LD, _) if code & 0xe0 == libc::BPF_ABS => {
                a.raw(u8::try_from(code).ok()?, 0, 0, constant);
            }
            (libc::BPF_LD, _) if code & 0xe0 == libc::BPF_IND => {
                a.raw(u8::try_from(code).ok()?, 0, X, constant);
            }
            (libc::BPF_LDX, _) if code == libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH => {
                a.mov(KEPT, A);
                a.raw(0x30, 0, 0, constant);
                a.and(A, 0x0f);
                a.shift_left(A, 2);
                a.mov(X, A);
                a.mov(A, KEPT);
            }
            (libc::BPF_ALU, _) if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                a.raw(0x54, A, 0, constant);
            }
            (libc::BPF_RET, _) => a.jump(if k == 0 { refused } else { taken }),
            (libc::BPF_JMP, _) if code & 0xf0 == libc::BPF_JA => {
                jumps.push((a.here(), at + 1 + usize::try_from(k).ok()?));
                a.raw(0x05, 0, 0, 0);
            }
            (libc::BPF_JMP, _) => {
                let with_register = match code {
                    _ if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => 0x1d,
                    _ if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => 0x2d,
                    _ if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => 0x3d,
                    _ if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => 0x4d,
                    _ => return None,
                };
                // 32 bits, not sign-extended.
                a.raw(0xb4, SCRATCH, 0, constant);
                jumps.push((a.here(), at + 1 + usize::from(op.jt)));
                a.raw(with_register, A, SCRATCH, 0);
                jumps.push((a.here(), at + 1 + usize::from(op.jf)));
                a.raw(0x05, 0, 0, 0);
            }
            _ => return None,
        }
    }
    for (at, to) in jumps {
        // A classic program never jumps behind its end.
        a.aim(at, *starts.get(to)?);
    }
    Some(())
}

/// Which instructions can be run at all. Classic programs jump forward only.
fn reached(program: &[sock_filter]) -> Vec<bool> {
    let mut reached = vec![false; program.len()];
    let mark = |reached: &mut Vec<bool>, at: usize| {
        if let Some(place) = reached.get_mut(at) {
            *place = true;
        }
    };
    mark(&mut reached, 0);
    for (at, op) in program.iter().enumerate() {
        let code = u32::from(op.code);
        match code & 7 {
            _ if !reached[at] => {}
            libc::BPF_RET => {}
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => mark(&mut reached, at + 1 + op.k as usize),
            libc::BPF_JMP => {
                mark(&mut reached, at + 1 + usize::from(op.jt));
                mark(&mut reached, at + 1 + usize::from(op.jf));
            }
            _ => mark(&mut reached, at + 1),
        }
    }
    reached
}
