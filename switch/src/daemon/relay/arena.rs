//! Numbered places: a number is never valid for a second thing, though its place is used again.

/// Things that epoll events name by number.
#[derive(Debug)]
pub(super) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    /// How often the place was used before, as far as 28 bits go.
    generation: u32,
    thing: Option<T>,
}

/// Bits of a place's index in an id.
const INDEX_BITS: u32 = 24;
const GENERATIONS: u32 = 1 << 28;

/// A thing's number: 52 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(pub(super) u64);

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    pub(super) fn insert(&mut self, thing: T) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, thing: None });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        place.thing = Some(thing);
        Id(u64::from(place.generation) << INDEX_BITS | u64::from(index))
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = self.places.get_mut(Self::index(id))?;
        if u64::from(place.generation) == id.0 >> INDEX_BITS { place.thing.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        self.get_mut(id)?;
        let index = Self::index(id);
        let place = &mut self.places[index];
        place.generation = (place.generation + 1) % GENERATIONS;
        self.free.push(u32::try_from(index).ok()?);
        place.thing.take()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let id = Id(u64::from(place.generation) << INDEX_BITS | index as u64);
            place.thing.as_ref().map(|t| (id, t))
        })
    }

    fn index(id: Id) -> usize {
        // 24 bits fit in any usize.
        usize::try_from(id.0 & ((1 << INDEX_BITS) - 1)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_again() {
        let mut arena = Arena::default();
        let a = arena.insert('a');
        let b = arena.insert('b');
        assert_eq!(arena.remove(a), Some('a'));
        assert_eq!((arena.remove(a), arena.len()), (None, 1));
        let c = arena.insert('c');
        assert_ne!(a, c);
        assert_eq!(arena.get_mut(a), None);
        assert_eq!(arena.iter().map(|(id, t)| (id, *t)).collect::<Vec<_>>(), [(c, 'c'), (b, 'b')]);
    }
}
