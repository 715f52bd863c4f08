//! Brings into an overlay's file what a killed worker had only in its log.

use std::collections::BTreeMap;
use std::io;

use imago::Storage;
use imago::io_buffers::IoBuffer;

use super::layout::{COPIED, Layout};
use crate::block::storage::{FileStorage, iovec};
use crate::page::MappingLog;

/// The place of a cluster that reads as zeroes: what its L2 entry says (docs/interop/qcow2.txt, bit 0).
pub const ZERO: u64 = 1;

/// Unit of the file's updates; the tables are aligned to more.
const PAGE: u64 = 4096;

/// Bytes to put into pages of the file: page to place in it and content.
type Patches = BTreeMap<u64, Vec<(usize, Vec<u8>)>>;

/// Writes the log's mappings to the tables of `file` and empties the log. In the order of a flush: the data, which has
/// been written, and the refcounts are durable before the first L2 entry is.
///
/// # Errors
/// `InvalidData` for a mapping that no worker makes; what the file system says.
pub async fn replay(file: &FileStorage, layout: &Layout, log: &MappingLog) -> io::Result<()> {
    let (mut refcounts, mut entries) = (Patches::new(), Patches::new());
    let clusters = layout.size.div_ceil(1 << layout.cluster_bits);
    for (cluster, place) in log.entries() {
        if cluster >= clusters || !(place == ZERO || layout.is_data(place)) {
            let message = format!("the mapping of cluster {cluster} to {place:#x} in an overlay's log");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let entry = if place == ZERO { ZERO } else { place | COPIED };
        patch(&mut entries, layout.l2_entry(cluster), &entry.to_be_bytes());
        if place != ZERO {
            patch(&mut refcounts, layout.refcount(place >> layout.cluster_bits), &1u16.to_be_bytes());
        }
    }
    if entries.is_empty() {
        return Ok(());
    }
    apply(file, refcounts).await?;
    file.sync().await?;
    apply(file, entries).await?;
    log.clear();
    Ok(())
}

fn patch(patches: &mut Patches, offset: u64, bytes: &[u8]) {
    let place = (offset % PAGE) as usize;
    patches.entry(offset - offset % PAGE).or_default().push((place, bytes.to_vec()));
}

async fn apply(file: &FileStorage, patches: Patches) -> io::Result<()> {
    let mut page = IoBuffer::new(PAGE as usize, PAGE as usize)?;
    let buffer = iovec(page.as_mut().as_ptr(), PAGE as usize);
    for (offset, changes) in patches {
        // SAFETY: `page` outlives the await.
        unsafe { file.read(vec![buffer], offset) }.await?;
        let slice = page.as_mut().into_slice();
        for (place, bytes) in changes {
            slice[place..place + bytes.len()].copy_from_slice(&bytes);
        }
        // SAFETY: as above.
        unsafe { file.write(vec![buffer], offset) }.await?;
    }
    Ok(())
}
