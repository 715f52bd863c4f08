//! A binary heap of small numbers by key, in which each has at most one place that can be moved.

const NOWHERE: u32 = u32::MAX;

/// Least key first; of equal keys, the one put in earlier is likely, not certainly, first.
#[derive(Default)]
pub(super) struct Heap {
    slots: Vec<(u64, u32)>,
    /// Where each number is in `slots`.
    places: Vec<u32>,
}

impl Heap {
    /// The least key and its number.
    pub fn first(&self) -> Option<(u64, u32)> {
        self.slots.first().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn contains(&self, number: u32) -> bool {
        self.places.get(number as usize).is_some_and(|place| *place != NOWHERE)
    }

    /// Put `number` in, or give it another key.
    pub fn put(&mut self, number: u32, key: u64) {
        let index = number as usize;
        if index >= self.places.len() {
            self.places.resize(index + 1, NOWHERE);
        }
        let place = self.places[index];
        if place == NOWHERE {
            self.slots.push((key, number));
            self.rise(self.slots.len() - 1);
            return;
        }
        let place = place as usize;
        let before = std::mem::replace(&mut self.slots[place].0, key);
        if key < before {
            self.rise(place);
        } else if key > before {
            self.sink(place);
        }
    }

    /// Take `number` out, if it is in.
    pub fn remove(&mut self, number: u32) {
        let Some(place) = self.places.get_mut(number as usize) else { return };
        let place = std::mem::replace(place, NOWHERE) as usize;
        if place == NOWHERE as usize {
            return;
        }
        let Some(last) = self.slots.pop() else { return };
        if place < self.slots.len() {
            self.slots[place] = last;
            self.rise(place);
            self.sink(self.places[last.1 as usize] as usize);
        }
    }

    /// Lower all keys by `amount`.
    pub fn lower(&mut self, amount: u64) {
        for slot in &mut self.slots {
            slot.0 = slot.0.saturating_sub(amount);
        }
    }

    fn rise(&mut self, mut place: usize) {
        let slot = self.slots[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if self.slots[above].0 <= slot.0 {
                break;
            }
            self.set(place, self.slots[above]);
            place = above;
        }
        self.set(place, slot);
    }

    fn sink(&mut self, mut place: usize) {
        let slot = self.slots[place];
        loop {
            let mut below = 2 * place + 1;
            if below >= self.slots.len() {
                break;
            }
            if below + 1 < self.slots.len() && self.slots[below + 1].0 < self.slots[below].0 {
                below += 1;
            }
            if self.slots[below].0 >= slot.0 {
                break;
            }
            self.set(place, self.slots[below]);
            place = below;
        }
        self.set(place, slot);
    }

    fn set(&mut self, place: usize, slot: (u64, u32)) {
        self.slots[place] = slot;
        self.places[slot.1 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_least_key_is_first_whatever_is_moved_and_removed(
            steps in proptest::collection::vec((0..20u32, proptest::option::of(0..50u64)), 1..200)
        ) {
            let (mut heap, mut model) = (Heap::default(), BTreeMap::new());
            for (number, key) in steps {
                match key {
                    Some(key) => {
                        heap.put(number, key);
                        model.insert(number, key);
                    }
                    None => {
                        heap.remove(number);
                        model.remove(&number);
                    }
                }
                prop_assert_eq!(heap.contains(number), model.contains_key(&number));
                prop_assert_eq!(heap.first().map(|(key, _)| key), model.values().min().copied());
                if let Some((key, number)) = heap.first() {
                    prop_assert_eq!(model[&number], key);
                }
            }
        }
    }
}
