//! Frames that nobody would send, the same each time.

use switch::frame::Offload;

/// splitmix64: the same numbers for the same seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    #[allow(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() >> 1).expect("63 bits") % n
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// Some bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }

    /// One of these.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// An offload header: mostly none, else anything.
pub fn offload(random: &mut Random) -> Offload {
    if !random.one_in(4) {
        return Offload::default();
    }
    let half = |random: &mut Random| {
        let word = random.next().to_le_bytes();
        let n = u16::from_le_bytes([word[0], word[1]]);
        if random.one_in(2) { n % 128 } else { n }
    };
    Offload {
        flags: random.byte() % 4,
        gso_type: random.pick(&[0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 77]),
        hdr_len: half(random),
        gso_size: half(random),
        csum_start: half(random),
        csum_offset: random.pick(&[6, 16, 0, 65_535]),
    }
}

/// Changes a frame in up to five places.
pub fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(6) {
        let at = random.below(frame.len().max(1));
        match random.below(6) {
            0 | 1 if at < frame.len() => frame[at] = random.byte(),
            2 if at < frame.len() => frame[at] ^= 1 << random.below(8),
            3 => frame.truncate(at),
            4 => {
                let length = random.below(64);
                let more = random.bytes(length);
                frame.splice(at..at, more);
            }
            // Lengths and offsets are where parsers break.
            _ if at + 1 < frame.len() => {
                frame[at..at + 2].copy_from_slice(&random.pick(&[
                    [0, 0],
                    [0xff, 0xff],
                    [0, 1],
                    [0x7f, 0xff],
                ]));
            }
            _ => {}
        }
    }
}
