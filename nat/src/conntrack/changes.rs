//! Which places of the table have changed since they were written down last.
//!
//! A place is noted once however often it changes: a bit says that it is in the list already. Neither grows for a packet, but
//! for a table that grows.

/// Places that changed, while somebody wants to know.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    wanted: bool,
    places: Vec<u32>,
    noted: Vec<u64>,
}

impl Changes {
    /// Notes places from now on, or forgets those that were.
    pub(super) fn want(&mut self, wanted: bool) {
        *self = Self { wanted, ..Self::default() };
    }

    pub(super) fn note(&mut self, index: u32) {
        if !self.wanted {
            return;
        }
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        if word >= self.noted.len() {
            self.noted.resize((word + 1).next_multiple_of(16), 0);
        }
        if let Some(noted) = self.noted.get_mut(word)
            && *noted & bit == 0
        {
            *noted |= bit;
            self.places.push(index);
        }
    }

    /// One of them.
    pub(super) fn take(&mut self) -> Option<u32> {
        let index = self.places.pop()?;
        if let Some(noted) = self.noted.get_mut(index as usize / 64) {
            *noted &= !(1 << (index % 64));
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_noted_once() {
        let mut changes = Changes::default();
        changes.note(7);
        assert_eq!(changes.take(), None, "nobody wants to know");
        changes.want(true);
        for index in [7, 5000, 7] {
            changes.note(index);
        }
        assert_eq!((changes.take(), changes.take(), changes.take()), (Some(5000), Some(7), None));
        changes.note(7);
        assert_eq!(changes.take(), Some(7));
    }
}
