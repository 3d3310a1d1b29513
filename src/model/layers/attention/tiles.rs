//! A step's segments cut into tiles for the attention kernels.
//!
//! A tile is some rows of one segment, for all heads of queries that share one head of keys. A wide tile has up to 64 such
//! queries and looks at all of its keys; where a segment has no more than 16 queries it becomes narrow ones, whose keys
//! are shared out so that a few long sequences still occupy the whole device. Invariant: the tiles of a segment cover
//! each row once, and the parts of a narrow one each key once.

use super::plan::Segment;

const WIDE: usize = 64;

/// Queries of a narrow tile, and rows that the kernels keep of each of its parts.
pub const NARROW: usize = 16;

/// Fewer keys are not worth a tile of their own.
const LEAST_KEYS: usize = 128;

/// Tiles that keep a large device busy.
const ENOUGH: usize = 1024;

/// Some rows and the keys that are looked at for them, as the kernels read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub first_row: u32,
    pub rows: u32,
    /// Of the first row.
    pub position: u32,
    /// Keys `from..to`.
    pub from: u32,
    pub to: u32,
    /// Where its block table begins among all tables.
    pub table: u32,
    /// Items that share these rows' keys out.
    pub parts: u32,
}

impl Item {
    pub const WORDS: usize = 7;

    pub fn words(self) -> [u32; Self::WORDS] {
        [self.first_row, self.rows, self.position, self.from, self.to, self.table, self.parts]
    }
}

/// Narrow items that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub first_item: u32,
    pub parts: u32,
    pub first_row: u32,
    pub rows: u32,
}

impl Merge {
    pub const WORDS: usize = 4;

    pub fn words(self) -> [u32; Self::WORDS] {
        [self.first_item, self.parts, self.first_row, self.rows]
    }
}

/// All tiles of a layer's segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tiles {
    pub wide: Vec<Item>,
    pub narrow: Vec<Item>,
    pub merges: Vec<Merge>,
}

impl Tiles {
    /// `tables` says where each sequence's block table begins; `group` heads of queries share one of `kv_heads` heads of
    /// keys. None when a tile has no room for the heads of one row.
    pub fn new(segments: &[Segment], tables: &[u32], group: usize, kv_heads: usize) -> Option<Self> {
        if group == 0 || group > WIDE {
            return None;
        }
        let is_narrow = |segment: &&Segment| segment.rows.len() * group <= NARROW;
        let narrow = segments.iter().filter(is_narrow).count();
        let most_parts = ENOUGH.div_ceil((narrow * kv_heads).max(1));
        let mut tiles = Self::default();
        for segment in segments {
            match is_narrow(&segment) {
                true => tiles.share_out(segment, tables[segment.sequence], most_parts),
                false => tiles.cut(segment, tables[segment.sequence], WIDE / group),
            }
        }
        Some(tiles)
    }

    fn cut(&mut self, segment: &Segment, table: u32, rows: usize) {
        for offset in (0..segment.rows.len()).step_by(rows) {
            let count = rows.min(segment.rows.len() - offset);
            let position = segment.position + offset;
            self.wide.push(Item {
                first_row: (segment.rows.start + offset) as u32,
                rows: count as u32,
                position: position as u32,
                from: segment.first_key as u32,
                to: (position + count) as u32,
                table,
                parts: 1,
            });
        }
    }

    fn share_out(&mut self, segment: &Segment, table: u32, most: usize) {
        let end = segment.position + segment.rows.len();
        let keys = end - segment.first_key;
        let share = keys.div_ceil((keys / LEAST_KEYS).clamp(1, most));
        let parts = keys.div_ceil(share);
        let (first_row, rows) = (segment.rows.start as u32, segment.rows.len() as u32);
        if parts > 1 {
            self.merges.push(Merge { first_item: self.narrow.len() as u32, parts: parts as u32, first_row, rows });
        }
        for part in 0..parts {
            let from = segment.first_key + part * share;
            self.narrow.push(Item {
                first_row,
                rows,
                position: segment.position as u32,
                from: from as u32,
                to: end.min(from + share) as u32,
                table,
                parts: parts as u32,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_meets_each_of_its_keys_once(
            lengths in prop::collection::vec((1_usize..200, 0_usize..3000, 0_usize..64), 1..12),
            group in 1_usize..65,
            kv_heads in 1_usize..9,
        ) {
            let mut row = 0;
            let segments: Vec<Segment> = lengths.iter().enumerate().map(|(sequence, (count, past, hidden))| {
                let segment = Segment { rows: row..row + count, position: *past, first_key: *hidden.min(past), sequence };
                row += count;
                segment
            }).collect();
            let tables: Vec<u32> = (0..segments.len() as u32).map(|sequence| sequence * 1000).collect();
            let tiles = Tiles::new(&segments, &tables, group, kv_heads).unwrap();
            let mut seen = vec![Vec::new(); row];
            for (item, most) in tiles.wide.iter().map(|item| (item, WIDE)).chain(tiles.narrow.iter().map(|item| (item, NARROW))) {
                prop_assert!(item.rows as usize * group <= most && item.from < item.to);
                for row in 0..item.rows {
                    seen[(item.first_row + row) as usize].push((item.from, item.to, item.position + row, item.table));
                }
            }
            for segment in &segments {
                for (offset, parts) in seen[segment.rows.clone()].iter().enumerate() {
                    let mut next = segment.first_key as u32;
                    for (from, to, position, table) in parts {
                        prop_assert_eq!(*from, next);
                        prop_assert_eq!(*position as usize, segment.position + offset);
                        prop_assert_eq!(*table, tables[segment.sequence]);
                        next = *to;
                    }
                    prop_assert!(next as usize > segment.position + offset);
                }
            }
            for merge in &tiles.merges {
                let parts = &tiles.narrow[merge.first_item as usize..][..merge.parts as usize];
                prop_assert!(parts.iter().all(|part| part.first_row == merge.first_row && part.parts == merge.parts));
            }
        }
    }

    #[test]
    fn one_long_sequence_is_shared_out_and_many_are_not() {
        let segment =
            |sequence: usize| Segment { rows: sequence..sequence + 1, position: 4095, first_key: 0, sequence };
        let alone = Tiles::new(&[segment(0)], &[0], 4, 8).unwrap();
        assert_eq!((alone.narrow.len(), alone.merges.len()), (32, 1));
        let many: Vec<Segment> = (0..128).map(segment).collect();
        let many = Tiles::new(&many, &[0; 128], 4, 8).unwrap();
        assert_eq!((many.narrow.len(), many.merges.len()), (128, 0));
        assert_eq!(Tiles::new(&[segment(0)], &[0], 65, 1), None);
    }
}
