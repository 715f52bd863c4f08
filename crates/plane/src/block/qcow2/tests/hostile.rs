//! Damaged and hostile images: an error or any content, never a panic, a hang or a write outside of the data.

use super::*;

/// Bytes that a mutation replaces: headers, extensions and tables of both images lie here.
const TABLES: u64 = 5 * CLUSTER + 64;

fn mutations() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let place = prop_oneof![
        4 => 0..112u64,
        2 => 0..700u64,
        3 => (0..6u64, 0..64u64).prop_map(|(cluster, at)| cluster * CLUSTER + at),
        1 => 0..TABLES,
    ];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        Just(vec![0xff; 8]),
        Just(vec![0; 8]),
        (0..64u32).prop_map(|bit| (1u64 << bit).to_be_bytes().to_vec()),
    ];
    prop::collection::vec((place, bytes), 1..4)
}

fn mutate(path: &Path, mutations: &[(u64, Vec<u8>)]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for (place, bytes) in mutations {
        file.write_all_at(bytes, *place).unwrap();
    }
}

/// An image of QEMU's with data, a zero cluster and compressed clusters.
fn foreign(dir: &Path) -> PathBuf {
    let (raw, path) = (dir.join("plain"), dir.join("foreign.qcow2"));
    let content: Vec<u8> = (0..8 * CLUSTER).map(|at| (at / 4096 % 200) as u8).collect();
    std::fs::write(&raw, content).unwrap();
    let convert =
        Command::new("qemu-img").args(["convert", "-c", "-O", "qcow2"]).args([&raw, &path]).status();
    assert!(convert.unwrap().success());
    let write = ["write -P 7 64k 64k", "write -P 8 200k 4k", "write -z 320k 64k"];
    let edits = write.iter().flat_map(|command| ["-c", command]);
    let edit = Command::new("qemu-io").args(["-f", "qcow2"]).args(edits).arg(&path).output();
    assert!(edit.unwrap().status.success());
    path
}

fn read_all(bench: &Bench) {
    let size = bench.disk.size();
    for offset in (0..size.min(32 * CLUSTER)).step_by(CLUSTER as usize) {
        let _ = bench.read(offset, CLUSTER.min(size - offset));
    }
    let _ = bench.read(size - 512, 512);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_image_below_is_an_error_or_content(mutations in mutations()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::copy(FOREIGN.path().join("foreign.qcow2"), &path).unwrap();
        mutate(&path, &mutations);
        if let Ok(bench) = Bench::open(&[(&path, Format::Qcow2)], false, false) {
            read_all(&bench);
        }
        let top = dir.path().join("top");
        layout::create(&top, 8 * CLUSTER, None).unwrap();
        if let Ok(bench) = Bench::open(&[(&top, Format::Qcow2), (&path, Format::Qcow2)], true, false) {
            read_all(&bench);
            let _ = bench.write(3 * CLUSTER + 512, &[1; 512]);
            read_all(&bench);
        }
    }

    #[test]
    fn a_damaged_overlay_is_an_error_or_content(mutations in mutations()) {
        let dir = tempfile::tempdir().unwrap();
        let (top, raw) = overlay(dir.path(), 4 * CLUSTER, 8 * CLUSTER);
        let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
        {
            let bench = Bench::open(&layers, true, false).unwrap();
            bench.write(CLUSTER, &[3; 8192]).unwrap();
            bench.simple(Operation::WriteZeroes { unmap: true }, 2 * CLUSTER, CLUSTER).unwrap();
        }
        mutate(&top, &mutations);
        if let Ok(bench) = Bench::open(&layers, true, false) {
            read_all(&bench);
            for cluster in 0..bench.disk.size().min(8 * CLUSTER) / CLUSTER {
                let _ = bench.write(cluster * CLUSTER + 512, &[1; 512]);
                let _ = bench.simple(Operation::WriteZeroes { unmap: false }, cluster * CLUSTER, CLUSTER);
                let _ = bench.simple(Operation::Flush, 0, 0);
            }
            read_all(&bench);
        }
    }
}

static FOREIGN: std::sync::LazyLock<tempfile::TempDir> = std::sync::LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    foreign(dir.path());
    dir
});
