use super::*;
use proptest::prelude::*;
use ulid::Ulid;

fn full(pages: &[u8]) -> Layer {
    let nblocks = pages.len() as u32;
    let mut layer = Layer {
        page_size: 8192,
        nblocks,
        limit_block: 0,
        method: Method::Full,
        bitmap: bitmap(nblocks),
        zero_bitmap: bitmap(nblocks),
        runs: Vec::new(),
        digests: Vec::new(),
        checksums: Vec::new(),
        tail: Vec::new(),
    };
    (0..nblocks).for_each(|at| set_bit(&mut layer.bitmap, at));
    store(&mut layer, pages, |_| true);
    layer
}

/// The "digest" of a page is its value here, so that a test sees which page it got.
fn store(layer: &mut Layer, pages: &[u8], wanted: impl Fn(u32) -> bool) {
    for (at, value) in (0..).zip(pages) {
        if !wanted(at) {
            continue;
        }
        set_bit(&mut layer.bitmap, at);
        if *value == 0 {
            set_bit(&mut layer.zero_bitmap, at);
        } else {
            layer.digests.push(u64::from(*value));
            layer.checksums.push(0);
            layer.runs.push(PageRun {
                object: Ulid::nil(),
                offset: 0,
                stored_len: 1,
                first: 0,
                pages: 1,
            });
        }
    }
}

fn read_back(layers: &[Layer]) -> Vec<u8> {
    let sources = resolve(layers).unwrap();
    let value = |source: &PageSource| match *source {
        PageSource::Zero => 0,
        PageSource::Stored { layer, index } => layers[layer].digests[index as usize] as u8,
    };
    sources.iter().map(value).collect()
}

proptest! {
    /// A history of writes, truncations and extensions, one layer each, reads back exactly.
    #[test]
    fn layers_resolve_to_the_file(history in prop::collection::vec(
        (0_u32..40, prop::collection::vec((0_u32..40, 0_u8..4), 0..12)), 1..8))
    {
        let mut pages: Vec<u8> = vec![1; 12];
        let mut layers = vec![full(&pages)];
        for (length, writes) in history {
            let mut limit = pages.len() as u32;
            let mut changed = std::collections::BTreeSet::new();
            if (length as usize) < pages.len() {
                pages.truncate(length as usize);
                limit = length;
            }
            for (at, value) in writes {
                if at as usize >= pages.len() {
                    pages.resize(at as usize + 1, 0);
                }
                pages[at as usize] = value;
                changed.insert(at);
            }
            let mut layer = full(&[]);
            layer.nblocks = pages.len() as u32;
            layer.limit_block = limit;
            layer.bitmap = bitmap(layer.nblocks);
            layer.zero_bitmap = bitmap(layer.nblocks);
            store(&mut layer, &pages, |at| changed.contains(&at));
            layers.insert(0, layer);
            prop_assert_eq!(&read_back(&layers), &pages);
        }
        for layer in &layers {
            let mut record = Vec::new();
            layer.encode_into(&mut record);
            prop_assert_eq!(&Layer::decode(&record).unwrap(), layer);
        }
    }

    #[test]
    fn no_bytes_make_decode_panic(mut record in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Layer::decode(&record);
        let mut real = Vec::new();
        full(&[1, 0, 2]).encode_into(&mut real);
        record.truncate(real.len());
        for (at, byte) in record.iter().enumerate().filter(|(_, b)| **b > 200) {
            real[at] = *byte;
        }
        let _ = Layer::decode(&real);
    }
}
