//! A slab that grows by chunks, so that growth never moves what is there.
//!
//! A vector that doubles at a quarter of a million connections copies 60 MB in one go and stalls the worker; a new chunk
//! costs the same at any size. Chunks are kept when entries leave: memory stays at its peak, which the table's limit
//! bounds.

/// Entries of a chunk.
const CHUNK: usize = 1024;

/// No entry: the end of a list, or a reference that is not set.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Slot<T> {
    /// How many entries have lived here, so that an old reference is not taken for the present one.
    generation: u32,
    place: Place<T>,
}

#[derive(Clone, Debug)]
enum Place<T> {
    /// The next free one.
    Free(u32),
    Taken(T),
}

impl<T> Slot<T> {
    const fn value(&self) -> Option<&T> {
        match &self.place {
            Place::Free(_) => None,
            Place::Taken(value) => Some(value),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
    free: u32,
    len: u32,
    slots: u32,
}

impl<T> Slab<T> {
    /// The bytes that an entry takes.
    #[cfg(test)]
    pub(crate) const SLOT: usize = size_of::<Slot<T>>();

    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), free: NONE, len: 0, slots: 0 }
    }

    /// The number of entries.
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// One more than the highest index ever used.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    /// Adds an entry and returns its index and generation. `None` when indices run out at 2^31, since users of the slab
    /// keep one bit for themselves.
    pub(crate) fn insert(&mut self, value: T) -> Option<(u32, u32)> {
        let index = match self.free {
            NONE if self.slots >= 1 << 31 => return None,
            NONE => {
                if (self.slots as usize).is_multiple_of(CHUNK) {
                    self.chunks.push(Vec::with_capacity(CHUNK));
                }
                let slot = Slot { generation: 0, place: Place::Free(NONE) };
                self.chunks.last_mut()?.push(slot);
                self.slots += 1;
                self.slots - 1
            }
            index => index,
        };
        let slot = self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)?;
        if self.free == index
            && let Place::Free(next) = slot.place
        {
            self.free = next;
        }
        slot.place = Place::Taken(value);
        self.len += 1;
        Some((index, slot.generation))
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?.value()
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let slot = self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)?;
        match &mut slot.place {
            Place::Free(_) => None,
            Place::Taken(value) => Some(value),
        }
    }

    /// The generation of the present entry at `index`.
    pub(crate) fn generation(&self, index: u32) -> Option<u32> {
        let slot = self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?;
        slot.value().map(|_| slot.generation)
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)?;
        slot.value()?;
        let Place::Taken(value) = std::mem::replace(&mut slot.place, Place::Free(self.free)) else {
            return None;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free = index;
        self.len -= 1;
        Some(value)
    }

    /// All entries with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.slots).filter_map(|index| Some((index, self.get(index)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_places_under_a_new_generation() {
        let mut slab = Slab::new();
        let ids: Vec<_> = (0..3000).map(|n| slab.insert(n).unwrap()).collect();
        assert_eq!(slab.slots(), 3000);
        assert_eq!(slab.remove(ids[1500].0), Some(1500));
        assert_eq!(slab.remove(ids[1500].0), None);
        assert_eq!(slab.generation(1500), None);
        assert_eq!(slab.insert(9), Some((1500, 1)));
        assert_eq!((slab.len(), slab.slots()), (3000, 3000));
        assert_eq!(slab.iter().count(), 3000);
    }
}
