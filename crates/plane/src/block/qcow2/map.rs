//! Where the clusters of a disk are: a direct-mapped cache in front of imago's lookups.
//!
//! Entries of the top layer never go stale: a data cluster of an overlay stays where it is (discards punch holes into
//! it). An entry of another layer ends when the cluster is allocated on top.

/// Entries at most: 512 KiB, filled as needed; 2 GiB of a disk with 64 KiB clusters.
const MAX_ENTRIES: u64 = 32_768;

/// Offsets in files are multiples of a sector, which leaves these bits for the layer.
const LAYER_MASK: u64 = 511;
const ZERO_LAYER: u64 = LAYER_MASK;

/// Where the content of a range begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a layer's file, at this byte.
    File {
        /// Number of the layer, 0 on top.
        layer: usize,
        /// Byte in the layer's file.
        offset: u64,
    },
    /// Nowhere: it reads as zeroes.
    Zero,
}

impl Place {
    /// The place `distance` bytes on.
    pub fn plus(self, distance: u64) -> Place {
        match self {
            Place::File { layer, offset } => Place::File { layer, offset: offset + distance },
            Place::Zero => Place::Zero,
        }
    }
}

/// The cache: cluster number to the place of its first byte.
pub struct ClusterMap {
    /// Cluster number plus one (0 is an empty entry), and the place.
    entries: Vec<[u64; 2]>,
    mask: u64,
}

impl ClusterMap {
    /// For a disk of `clusters`.
    pub fn new(clusters: u64) -> ClusterMap {
        let size = clusters.next_power_of_two().min(MAX_ENTRIES);
        ClusterMap { entries: vec![[0; 2]; size as usize], mask: size - 1 }
    }

    /// The place of a cluster, if it is known.
    pub fn get(&self, cluster: u64) -> Option<Place> {
        let [tag, place] = self.entries[(cluster & self.mask) as usize];
        if tag != cluster + 1 {
            return None;
        }
        Some(match place & LAYER_MASK {
            ZERO_LAYER => Place::Zero,
            layer => Place::File { layer: layer as usize, offset: place & !LAYER_MASK },
        })
    }

    /// Remembers the place of a cluster; one that is not at a sector is not remembered.
    pub fn insert(&mut self, cluster: u64, place: Place) {
        let place = match place {
            Place::Zero => ZERO_LAYER,
            Place::File { layer, offset } if offset & LAYER_MASK == 0 && (layer as u64) < ZERO_LAYER => {
                offset | layer as u64
            }
            Place::File { .. } => return,
        };
        self.entries[(cluster & self.mask) as usize] = [cluster + 1, place];
    }

    /// Forgets a cluster.
    pub fn remove(&mut self, cluster: u64) {
        if self.get(cluster).is_some() {
            self.entries[(cluster & self.mask) as usize] = [0; 2];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Zero),
            (0..32usize, 0..1u64 << 40)
                .prop_map(|(layer, sector)| Place::File { layer, offset: sector * 512 }),
        ]
    }

    proptest! {
        #[test]
        fn what_the_map_knows_is_what_was_last_said(
            steps in prop::collection::vec((0..200u64, prop::option::of(place())), 0..300),
            clusters in 1..200u64,
        ) {
            let mut map = ClusterMap::new(clusters);
            let mut model = HashMap::new();
            for (cluster, place) in steps {
                match place {
                    Some(place) => {
                        map.insert(cluster, place);
                        model.insert(cluster, place);
                        prop_assert_eq!(map.get(cluster), Some(place));
                    }
                    None => {
                        map.remove(cluster);
                        model.remove(&cluster);
                        prop_assert_eq!(map.get(cluster), None);
                    }
                }
                for cluster in 0..200 {
                    if let Some(place) = map.get(cluster) {
                        prop_assert_eq!(Some(&place), model.get(&cluster));
                    }
                }
            }
        }
    }

    #[test]
    fn a_place_that_is_not_at_a_sector_is_not_remembered() {
        let mut map = ClusterMap::new(8);
        map.insert(1, Place::File { layer: 1, offset: 100 });
        assert_eq!(map.get(1), None);
    }
}
