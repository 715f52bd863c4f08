//! The fixed layout of our overlays, and their creation.
//!
//! Every table that a full disk needs is there from the start: the refcount table and its blocks, the L1 table and all
//! L2 tables, in this order behind the header, empty ones as holes. Three reasons: a worker may be killed between any two
//! writes, and imago hooks a new table up before its refcount has reached the file; a table that is there costs
//! a guest's write nothing; and a mapping's place in the file is known without looking it up ([`super::replay`]). The file ends behind the tables and grows with its data: on ext4 a direct write that extends a
//! file takes io_uring half as long as one into a hole, or into preallocated space, which goes to a thread first.
//!
//! Format: docs/interop/qcow2.txt of QEMU, version 3 ("compat=1.1"), big endian.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
/// Version 3 without the optional compression type.
const HEADER_LENGTH: usize = 104;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The format's own limit.
const MAX_BACKING_NAME: usize = 1023;
/// 16 bits for each refcount.
const REFCOUNT_ORDER: u32 = 4;
/// Refcount 1 is exactly this entry's, it may be written in place.
pub const COPIED: u64 = 1 << 63;

const MIN_CLUSTER_BITS: u32 = 16;
const MAX_CLUSTER_BITS: u32 = 21;
/// imago keeps 128 L2 tables and 32 refcount blocks in memory, and writes one back when it needs room for another. With
/// so few, that never happens: metadata is written when we flush, in the order that we need.
const MAX_L2_TABLES: u64 = 100;

/// Where the tables of an overlay are; follows from its size and cluster size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Guest-visible size in bytes.
    pub size: u64,
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    l2_tables: u64,
    refcount_blocks: u64,
    refcount_table_clusters: u64,
    l1_clusters: u64,
}

impl Layout {
    /// The layout of an overlay of `size` bytes, with the smallest clusters that keep imago's caches from filling.
    ///
    /// # Errors
    /// `InvalidData` for more than 50 TiB.
    pub fn new(size: u64) -> io::Result<Layout> {
        (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS)
            .map(|cluster_bits| Layout::with_clusters(size, cluster_bits))
            .find(|layout| layout.l2_tables <= MAX_L2_TABLES)
            .ok_or_else(|| invalid(format!("{size} bytes are more than an overlay can have, 50 TiB")))
    }

    fn with_clusters(size: u64, cluster_bits: u32) -> Layout {
        let cluster = 1u64 << cluster_bits;
        // An L2 table is one cluster of 8-byte entries, a refcount block one of 2-byte entries.
        let l2_tables = size.div_ceil(cluster).div_ceil(cluster / 8);
        let l1_clusters = (l2_tables * 8).div_ceil(cluster);
        let mut layout = Layout {
            size,
            cluster_bits,
            l2_tables,
            refcount_blocks: 0,
            refcount_table_clusters: 1,
            l1_clusters,
        };
        // Room for twice the clusters of a full disk: a killed worker leaks the few that it was allocating.
        let clusters = 2 * (2 + l1_clusters + l2_tables + size.div_ceil(cluster));
        layout.refcount_blocks = (clusters + clusters / (cluster / 2) + 1).div_ceil(cluster / 2);
        layout.refcount_table_clusters = (layout.refcount_blocks * 8).div_ceil(cluster);
        layout
    }

    /// Where all tables are, the header aside.
    pub fn tables(&self) -> Range<u64> {
        self.refcount_table()..self.l2_table(self.l2_tables)
    }

    /// Where the L2 tables are.
    pub fn l2_tables(&self) -> Range<u64> {
        self.l2_table(0)..self.l2_table(self.l2_tables)
    }

    /// Where the L2 entry of a cluster of the disk is.
    pub fn l2_entry(&self, cluster: u64) -> u64 {
        // The tables lie one behind the other, so the entries are one array; so are the refcounts.
        self.l2_table(0) + 8 * cluster
    }

    /// Where the refcount of a cluster of the file is.
    pub fn refcount(&self, cluster: u64) -> u64 {
        self.refcount_block(0) + 2 * cluster
    }

    /// Whether `place` may be a data cluster: behind the tables, and counted by them.
    pub fn is_data(&self, place: u64) -> bool {
        let counted = self.refcount_blocks * (self.cluster() / 2);
        place.is_multiple_of(self.cluster())
            && place >= self.l2_tables().end
            && place >> self.cluster_bits < counted
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn refcount_table(&self) -> u64 {
        self.cluster()
    }

    fn refcount_block(&self, index: u64) -> u64 {
        (1 + self.refcount_table_clusters + index) << self.cluster_bits
    }

    fn l1_table(&self) -> u64 {
        self.refcount_block(self.refcount_blocks)
    }

    fn l2_table(&self, index: u64) -> u64 {
        self.l1_table() + ((self.l1_clusters + index) << self.cluster_bits)
    }

    /// Clusters of the header and the tables.
    fn metadata_clusters(&self) -> u64 {
        self.l2_table(self.l2_tables) >> self.cluster_bits
    }

    fn header(&self, backing: Option<(&str, &str)>) -> Vec<u8> {
        let mut extensions = Vec::new();
        let mut name = "";
        if let Some((path, format)) = backing {
            name = path;
            extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        // The end of the extensions: type 0, length 0.
        extensions.extend([0; 8]);
        let name_offset = if name.is_empty() { 0 } else { HEADER_LENGTH + extensions.len() };

        let mut header = Vec::with_capacity(4096);
        header.extend(MAGIC.to_be_bytes());
        header.extend(VERSION.to_be_bytes());
        header.extend((name_offset as u64).to_be_bytes());
        header.extend((name.len() as u32).to_be_bytes());
        header.extend(self.fixed_fields());
        header.extend(extensions);
        header.extend(name.as_bytes());
        header
    }

    /// The header from its byte 20, behind the backing file's name, to its end: the part that we know of every overlay.
    fn fixed_fields(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(HEADER_LENGTH - 20);
        fields.extend(self.cluster_bits.to_be_bytes());
        fields.extend(self.size.to_be_bytes());
        // No encryption.
        fields.extend(0u32.to_be_bytes());
        fields.extend((self.l2_tables as u32).to_be_bytes());
        fields.extend(self.l1_table().to_be_bytes());
        fields.extend(self.refcount_table().to_be_bytes());
        fields.extend((self.refcount_table_clusters as u32).to_be_bytes());
        // No internal snapshots, no feature bits: incompatible, compatible (lazy refcounts), autoclear.
        fields.extend([0; 4 + 8 + 8 + 8 + 8]);
        fields.extend(REFCOUNT_ORDER.to_be_bytes());
        fields.extend((HEADER_LENGTH as u32).to_be_bytes());
        fields
    }

    fn refcount_table_bytes(&self) -> Vec<u8> {
        (0..self.refcount_blocks).flat_map(|index| self.refcount_block(index).to_be_bytes()).collect()
    }

    fn l1_table_bytes(&self) -> Vec<u8> {
        (0..self.l2_tables).flat_map(|index| (self.l2_table(index) | COPIED).to_be_bytes()).collect()
    }

    fn write(&self, file: &File, backing: Option<(&str, &str)>) -> io::Result<()> {
        file.write_all_at(&self.header(backing), 0)?;
        file.write_all_at(&self.refcount_table_bytes(), self.refcount_table())?;
        // The blocks lie one behind the other, so the refcounts are one array.
        let refcounts = 1u16.to_be_bytes().repeat(self.metadata_clusters() as usize);
        file.write_all_at(&refcounts, self.refcount_block(0))?;
        file.write_all_at(&self.l1_table_bytes(), self.l1_table())?;
        file.set_len(self.l2_tables().end)
    }

    /// Reads back an overlay's fixed tables with `read(offset, length)`.
    ///
    /// # Errors
    /// `InvalidData` if they are not what [`create`] wrote: such an image may be read, but not written.
    pub async fn verify(read: impl AsyncFn(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<Layout> {
        let header = read(0, HEADER_LENGTH).await?;
        let field = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let cluster_bits = (field(20) >> 32) as u32;
        let size = field(24);
        let fits = (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits)
            && size < u64::MAX / 4
            && Layout::with_clusters(size, cluster_bits).l2_tables <= MAX_L2_TABLES;
        if !fits {
            return Err(invalid(format!(
                "not an overlay of ours: {size} bytes in clusters of 2^{cluster_bits}"
            )));
        }
        let layout = Layout::with_clusters(size, cluster_bits);
        let refcount_table = layout.refcount_table_bytes();
        let l1_table = layout.l1_table_bytes();
        let same = header[20..] == layout.fixed_fields()
            && read(layout.refcount_table(), refcount_table.len()).await? == refcount_table
            && read(layout.l1_table(), l1_table.len()).await? == l1_table;
        if same { Ok(layout) } else { Err(invalid("not an overlay of ours: other tables".into())) }
    }
}

/// Creates an empty qcow2 of `size` bytes at `path`, mode 0600, which must not exist; with `backing`, a path and its
/// format, an overlay of it. Whether the backing file exists is not checked, and nothing is synced.
///
/// # Errors
/// What the file system says; `InvalidInput` for a size that is no multiple of 512 or a name that is too long.
pub fn create(path: &Path, size: u64, backing: Option<(&str, &str)>) -> io::Result<()> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an image of {size} bytes: not a positive multiple of 512"),
        ));
    }
    if let Some((name, format)) = backing
        && (name.is_empty() || name.len() > MAX_BACKING_NAME || !matches!(format, "raw" | "qcow2"))
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("backing file of {} bytes of name, format {format:?}", name.len()),
        ));
    }
    let layout = Layout::new(size)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    layout.write(&file, backing).inspect_err(|_| {
        // Best effort: the error that matters is already on its way.
        let _ = fs::remove_file(path);
    })
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    const SIZES: [u64; 7] = [512, 64 << 10, (1 << 20) + 512, 2 << 30, 50 << 30, 51 << 30, 8 << 40];

    #[test]
    fn qemu_finds_nothing_wrong_with_a_new_overlay() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::write(&base, [1; 512]).unwrap();
        for size in SIZES {
            let path = dir.path().join(format!("{size}.qcow2"));
            create(&path, size, Some((base.to_str().unwrap(), "raw"))).unwrap();
            let output = Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("No errors"), "{size}: {output:?}");
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn an_overlay_is_recognized_and_any_change_of_its_tables_refused() {
        let dir = tempfile::tempdir().unwrap();
        for size in SIZES {
            let path = dir.path().join(format!("{size}.qcow2"));
            create(&path, size, None).unwrap();
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let layout = verify(&file).unwrap();
            assert_eq!(layout, Layout::new(size).unwrap());
            let places =
                [0, 20, 27, 32, 47, 55, 59, 63, 75, 99, layout.refcount_table() + 6, layout.l1_table()];
            for place in places.into_iter().skip(1) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, place).unwrap();
                file.write_all_at(&[byte[0] ^ 1], place).unwrap();
                assert!(verify(&file).is_err(), "{size}: byte {place}");
                file.write_all_at(&byte, place).unwrap();
            }
        }
    }

    #[test]
    fn creation_refuses_what_it_cannot_make_and_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for size in [0, 511, 513, 1 << 60] {
            create(&path, size, None).unwrap_err();
            assert!(!path.exists(), "{size}");
        }
        create(&path, 512, Some((&"x".repeat(1024), "raw"))).unwrap_err();
        create(&path, 512, Some(("x", "vmdk"))).unwrap_err();
        create(&path, 512, None).unwrap();
        assert_eq!(create(&path, 512, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    fn verify(file: &File) -> io::Result<Layout> {
        let ready = Layout::verify(async |offset, length| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        });
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(ready).poll(&mut context) {
            std::task::Poll::Ready(result) => result,
            std::task::Poll::Pending => unreachable!("nothing waits"),
        }
    }
}
