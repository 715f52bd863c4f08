//! A host loses its power: of what was not synced any part is in the file, and the log of mappings is gone.

use super::kill::{BASE, BLOCK, BLOCKS, Entry, FLUSH, Possible, Random, replay, serve, untouched, verify};
use super::*;
use crate::block::storage::fuse::Event;

/// Unit in which a device keeps or loses a write.
const PAGE: usize = 4096;

#[test]
fn what_was_flushed_survives_a_loss_of_power_and_the_image_is_in_order() {
    for seed in 1..7 {
        let dir = tempfile::tempdir().unwrap();
        let (top, raw) = overlay(dir.path(), BASE, BLOCKS * BLOCK);
        let new = std::fs::read(&top).unwrap();
        let mut log = Vec::new();
        fuse::record();
        let bench = Bench::open(&[(&top, Format::Qcow2), (&raw, Format::Raw)], true, false).unwrap();
        let mut note = |entry| log.push((fuse::events(), entry));
        serve(&bench, &mut Random(seed << 32 | 1), (3, 4), 40, &mut note);
        drop(bench);
        let events = fuse::take_record();
        assert!(
            log.iter().filter(|(_, entry)| entry.kind == FLUSH).count() > 3,
            "seed {seed}: too few flushes"
        );

        let mut random = Random(seed << 20 | 1);
        for _ in 0..12 {
            // Often while tables are being written, which is soon before the end of a sync.
            let mut stop = random.below(events.len() as u64) as usize;
            if random.below(3) > 0 {
                let end = events[stop..].iter().position(|event| matches!(event, Event::Synced(_)));
                stop = (stop + end.unwrap_or(0)).saturating_sub(random.below(6) as usize);
            }
            std::fs::write(&top, remains(&new, &events[..stop], &mut random)).unwrap();
            check_image(&top, true);
            let bench = Bench::open(&[(&top, Format::Qcow2), (&raw, Format::Raw)], true, false).unwrap();
            let before: Vec<Entry> =
                log.iter().filter(|(at, _)| *at <= stop).map(|(_, entry)| *entry).collect();
            verify(&bench, &mut allowed(&before), &format!("seed {seed}, after {stop} events"));
        }
    }
}

/// The file as it may be after `events`: `new`, all that is durable, and pages of the rest by chance.
fn remains(new: &[u8], events: &[Event], random: &mut Random) -> Vec<u8> {
    let synced = events
        .iter()
        .rev()
        .find_map(|event| if let Event::Synced(from) = event { Some(*from) } else { None });
    let durable: std::collections::HashSet<usize> = events[..synced.unwrap_or(0)]
        .iter()
        .filter_map(|event| if let Event::End(number) = event { Some(*number) } else { None })
        .collect();
    let mut file = new.to_vec();
    let odds = random.below(4);
    for (number, event) in events.iter().enumerate() {
        let Event::Begin(offset, bytes) = event else { continue };
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            if durable.contains(&number) || random.below(4) <= odds {
                let start = *offset as usize + index * PAGE;
                file.resize(file.len().max(start + page.len()), 0);
                file[start..start + page.len()].copy_from_slice(page);
            }
        }
    }
    file
}

/// What blocks may hold: what they held at the last flush, and what was written since, answered or not.
fn allowed(log: &[Entry]) -> Vec<Possible> {
    let flush = log.iter().rposition(|entry| entry.kind == FLUSH).map_or(0, |at| at + 1);
    let (flushed, since) = log.split_at(flush);
    let mut model = untouched();
    replay(&mut model, flushed);
    let since: Vec<Entry> = since.iter().map(|entry| entry.under_way()).collect();
    replay(&mut model, &since);
    model
}
