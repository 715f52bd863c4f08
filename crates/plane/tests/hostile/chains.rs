//! Descriptor chains and request headers that no driver writes.

use nagaya_client::Descriptor;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::house::{DISK_LEN, Disk, House};
use crate::scene::{Answer, DATA_LEN, INDIRECT, NEXT, QUEUE_SIZE, Scene, UNWRITTEN, WRITE};

/// Sectors of the disk under attack.
const SECTORS: u64 = DISK_LEN / 512;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// What the specification leaves a device to answer.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Odd but legal.
    Success,
    /// The driver is told by the status byte.
    Refused,
    /// There is no request here: the device needs a reset.
    Broken,
    /// Either way of refusing is right.
    RefusedOrBroken,
    /// The specification is silent: any answer, but one.
    Any,
}

impl Expect {
    fn allows(self, answer: Option<Answer>) -> bool {
        let refused = matches!(answer, Some(Answer::Used(IOERR | UNSUPP | UNWRITTEN)));
        let broken = answer == Some(Answer::Broken);
        match self {
            Expect::Success => answer == Some(Answer::Used(OK)),
            Expect::Refused => refused,
            Expect::Broken => broken,
            Expect::RefusedOrBroken => refused || broken,
            Expect::Any => answer.is_some(),
        }
    }
}

/// Name, what is right, and how the guest lays it out (descriptor 0 is the head).
type Case = (&'static str, Expect, fn(&Scene));

const WALKS: &[Case] = &[
    ("a descriptor that is its own next", Expect::Broken, |s| {
        s.chain(&[Descriptor { next: 0, ..s.head(0) }]);
    }),
    ("a loop of two", Expect::Broken, |s| s.chain(&[s.head(1), s.body(512, true, 0)])),
    ("a loop behind the header, writable", Expect::Broken, |s| {
        s.chain(&[s.head(1), s.body(512, true, 2), s.body(512, true, 1)]);
    }),
    ("next is the queue size", Expect::Broken, |s| s.chain(&[s.head(QUEUE_SIZE)])),
    ("next is 65535", Expect::Broken, |s| s.chain(&[s.head(0xffff)])),
    ("a writable header", Expect::RefusedOrBroken, |s| {
        s.chain(&[Descriptor { flags: NEXT | WRITE, ..s.head(1) }, s.body(512, true, 2), s.tail()]);
    }),
    ("readable behind writable", Expect::RefusedOrBroken, |s| {
        s.request(VIRTIO_BLK_T_OUT, 0);
        s.chain(&[s.head(1), s.body(512, true, 2), s.body(512, false, 3), s.tail()]);
    }),
    ("a header and nothing else", Expect::RefusedOrBroken, |s| {
        s.chain(&[Descriptor { flags: 0, ..s.head(0) }]);
    }),
    ("no status byte", Expect::RefusedOrBroken, |s| {
        s.request(VIRTIO_BLK_T_OUT, 0);
        s.chain(&[s.head(1), Descriptor { flags: 0, ..s.body(512, false, 0) }]);
    }),
    ("a status byte that is not writable", Expect::RefusedOrBroken, |s| {
        s.chain(&[s.head(1), s.body(512, true, 2), Descriptor { flags: 0, ..s.tail() }]);
    }),
    ("a status of zero bytes", Expect::RefusedOrBroken, |s| {
        s.chain(&[s.head(1), s.body(512, true, 2), Descriptor { len: 0, ..s.tail() }]);
    }),
    ("a header of zero bytes", Expect::RefusedOrBroken, |s| {
        s.chain(&[Descriptor { len: 0, ..s.head(1) }, s.body(512, true, 2), s.tail()]);
    }),
    ("a header of 15 bytes", Expect::RefusedOrBroken, |s| {
        s.chain(&[Descriptor { len: 15, ..s.head(1) }, s.body(512, true, 2), s.tail()]);
    }),
    ("only a status byte", Expect::RefusedOrBroken, |s| s.chain(&[s.tail()])),
    ("unknown flags on every descriptor", Expect::Success, |s| {
        let odd = |d: Descriptor| Descriptor { flags: d.flags | 0xfff8, ..d };
        s.chain(&[odd(s.head(1)), odd(s.body(512, true, 2)), odd(s.tail())]);
    }),
    ("a header in two halves", Expect::Success, |s| {
        let half = |at, next| Descriptor { addr: s.header + at, len: 8, flags: NEXT, next };
        s.chain(&[half(0, 1), half(8, 2), s.body(512, true, 3), s.tail()]);
    }),
    ("a header in sixteen bytes", Expect::Success, |s| {
        let byte = |at: u16| Descriptor { addr: s.header + u64::from(at), len: 1, flags: NEXT, next: at + 1 };
        let mut chain: Vec<_> = (0..16).map(byte).collect();
        chain.extend([s.body(512, true, 17), s.tail()]);
        s.chain(&chain);
    }),
    ("header and written data in one descriptor", Expect::Success, |s| {
        s.request(VIRTIO_BLK_T_OUT, 0);
        s.chain(&[Descriptor { len: 16 + 512, ..s.head(1) }, s.tail()]);
    }),
    ("status behind the data in one descriptor", Expect::Success, |s| {
        // The status byte must be the very last: put the data right before it.
        let both = Descriptor { addr: s.status - 512, len: 513, flags: WRITE, next: 0 };
        s.chain(&[s.head(1), both]);
    }),
    ("a chain as long as the ring", Expect::Success, |s| {
        let mut chain = vec![s.head(1)];
        for next in 2..QUEUE_SIZE {
            let at = u64::from(next) * 512;
            chain.push(Descriptor { addr: s.data + at, ..s.body(512, true, next) });
        }
        chain.push(s.tail());
        s.chain(&chain);
    }),
];

const ADDRESSES: &[Case] = &[
    ("a header at address 0", Expect::RefusedOrBroken, |s| {
        s.chain(&[Descriptor { addr: 0, ..s.head(1) }, s.body(512, true, 2), s.tail()]);
    }),
    ("a header across the end of memory", Expect::RefusedOrBroken, |s| {
        let addr = s.device.memory.end() - 8;
        s.chain(&[Descriptor { addr, ..s.head(1) }, s.body(512, true, 2), s.tail()]);
    }),
    ("data just behind memory", Expect::RefusedOrBroken, |s| {
        let addr = s.device.memory.end();
        s.chain(&[s.head(1), Descriptor { addr, ..s.body(512, true, 2) }, s.tail()]);
    }),
    ("data across the end of memory", Expect::RefusedOrBroken, |s| {
        let addr = s.device.memory.end() - 256;
        s.chain(&[s.head(1), Descriptor { addr, ..s.body(512, true, 2) }, s.tail()]);
    }),
    ("data just below memory", Expect::RefusedOrBroken, |s| {
        let addr = s.device.memory.start() - 1;
        s.chain(&[s.head(1), Descriptor { addr, ..s.body(512, true, 2) }, s.tail()]);
    }),
    ("data whose end wraps around", Expect::RefusedOrBroken, |s| {
        let addr = u64::MAX - 255;
        s.chain(&[s.head(1), Descriptor { addr, ..s.body(512, true, 2) }, s.tail()]);
    }),
    ("data by the address of the frontend's mapping", Expect::RefusedOrBroken, |s| {
        let addr = s.device.memory.user_address(s.data);
        s.chain(&[s.head(1), Descriptor { addr, ..s.body(512, true, 2) }, s.tail()]);
    }),
    ("a status byte outside", Expect::RefusedOrBroken, |s| {
        s.chain(&[s.head(1), s.body(512, true, 2), Descriptor { addr: u64::MAX, ..s.tail() }]);
    }),
    ("data of zero bytes", Expect::RefusedOrBroken, |s| {
        s.chain(&[s.head(1), s.body(0, true, 2), s.tail()]);
    }),
    ("data of 4 GiB less one", Expect::RefusedOrBroken, |s| {
        s.chain(&[s.head(1), s.body(u32::MAX, true, 2), s.tail()]);
    }),
    ("lengths whose sum wraps 32 bits to 512", Expect::RefusedOrBroken, |s| {
        s.chain(&[
            s.head(1),
            s.body(1 << 31, true, 2),
            s.body(1 << 31, true, 3),
            s.body(512, true, 4),
            s.tail(),
        ]);
    }),
    ("64 times the same 128 KiB", Expect::Success, |s| {
        let mut chain = vec![s.head(1)];
        chain.extend((2..QUEUE_SIZE).map(|next| s.body(DATA_LEN as u32, true, next)));
        chain.push(s.tail());
        s.chain(&chain);
    }),
    ("the ring itself as the buffer", Expect::Success, |s| {
        // Reads sector 0, which is zeroes, over its own descriptors: the walk must be over by then.
        s.chain(&[s.head(1), Descriptor { addr: s.queue.ring.desc, ..s.body(512, true, 2) }, s.tail()]);
    }),
];

const INDIRECTS: &[Case] = &[
    ("an indirect table", Expect::Success, |s| {
        s.indirect(&[s.head(1), s.body(512, true, 2), s.tail()]);
    }),
    ("indirect in indirect", Expect::Broken, |s| {
        let inner = Descriptor { addr: s.table, len: 48, flags: INDIRECT, next: 0 };
        s.indirect(&[s.head(1), inner]);
    }),
    ("an indirect table that contains itself first", Expect::Broken, |s| {
        s.indirect(&[Descriptor { addr: s.table, len: 16, flags: INDIRECT, next: 0 }]);
    }),
    ("an indirect table of zero bytes", Expect::Broken, |s| table_of(s, 0)),
    ("an indirect table of 15 bytes", Expect::Broken, |s| table_of(s, 15)),
    ("an indirect table of 49 bytes", Expect::Broken, |s| table_of(s, 49)),
    ("an indirect table of 4 GiB less 16", Expect::Broken, |s| table_of(s, u32::MAX - 15)),
    ("an indirect table of 65,536 entries in a straight line", Expect::RefusedOrBroken, |s| {
        for index in 0..0x1_0000_u64 {
            let body = s.body(512, true, (index + 1) as u16);
            s.device.memory.put(s.table + 16 * index, body);
        }
        s.device.memory.put(s.table, s.head(1));
        table_of(s, 16 * 0xffff);
    }),
    ("an indirect table outside memory", Expect::Broken, |s| {
        s.chain(&[Descriptor { addr: s.device.memory.end(), len: 48, flags: INDIRECT, next: 0 }]);
    }),
    ("an indirect table across the end of memory", Expect::Broken, |s| {
        s.chain(&[Descriptor { addr: s.device.memory.end() - 16, len: 48, flags: INDIRECT, next: 0 }]);
    }),
    ("a loop in an indirect table", Expect::Broken, |s| {
        s.indirect(&[s.head(1), s.body(512, true, 1), s.tail()]);
    }),
    ("next outside its indirect table, inside the ring", Expect::Broken, |s| {
        s.indirect(&[s.head(1), s.body(512, true, 3), s.tail()]);
    }),
    ("an indirect descriptor that has a next", Expect::Any, |s| {
        s.indirect(&[s.head(1), s.body(512, true, 2), s.tail()]);
        let both = Descriptor { addr: s.table, len: 48, flags: INDIRECT | NEXT, next: 1 };
        s.chain(&[both, s.tail()]);
    }),
    ("an unaligned indirect table", Expect::Success, |s| {
        s.indirect(&[]);
        for (index, one) in [s.head(1), s.body(512, true, 2), s.tail()].into_iter().enumerate() {
            s.device.memory.put(s.table + 1 + 16 * index as u64, one);
        }
        s.chain(&[Descriptor { addr: s.table + 1, len: 48, flags: INDIRECT, next: 0 }]);
    }),
];

const REQUESTS: &[Case] = &[
    ("a read at the last sector but one, two beyond", Expect::Refused, |s| read_at(s, SECTORS - 1, 1024)),
    ("a read behind the end", Expect::Refused, |s| read_at(s, SECTORS, 512)),
    ("a read at sector 2^64-1", Expect::Refused, |s| read_at(s, u64::MAX, 512)),
    ("a read whose last sector wraps to 0", Expect::Refused, |s| read_at(s, u64::MAX, 1024)),
    ("a sector whose byte offset wraps to 0", Expect::Refused, |s| read_at(s, 1 << 55, 512)),
    ("a sector whose byte offset is negative", Expect::Refused, |s| read_at(s, 1 << 54, 512)),
    ("a read of 513 bytes", Expect::Refused, |s| read_at(s, 0, 513)),
    ("a read of 1 byte", Expect::Refused, |s| read_at(s, 0, 1)),
    ("an unknown request type", Expect::Refused, |s| {
        s.request(0xdead_beef, 0);
        s.chain(&[s.head(1), s.body(512, true, 2), s.tail()]);
    }),
    ("SCSI passthrough", Expect::Refused, |s| {
        s.request(2, 0);
        s.chain(&[s.head(1), s.body(512, true, 2), s.tail()]);
    }),
    ("a write whose data is writable", Expect::RefusedOrBroken, |s| {
        s.request(VIRTIO_BLK_T_OUT, 0);
        s.chain(&[s.head(1), s.body(512, true, 2), s.tail()]);
    }),
    ("a read whose data is read-only", Expect::RefusedOrBroken, |s| {
        s.request(VIRTIO_BLK_T_IN, 0);
        s.chain(&[s.head(1), s.body(512, false, 2), s.tail()]);
    }),
    ("a flush with a sector", Expect::Success, |s| {
        s.request(VIRTIO_BLK_T_FLUSH, u64::MAX);
        s.chain(&[s.head(1), s.tail()]);
    }),
    ("a serial into 5 bytes", Expect::Success, |s| {
        s.request(VIRTIO_BLK_T_GET_ID, 0);
        s.chain(&[s.head(1), s.body(5, true, 2), s.tail()]);
    }),
    ("a serial into 128 KiB", Expect::Success, |s| {
        s.request(VIRTIO_BLK_T_GET_ID, 0);
        s.chain(&[s.head(1), s.body(DATA_LEN as u32, true, 2), s.tail()]);
    }),
    ("a discard without a range", Expect::Refused, |s| ranges(s, VIRTIO_BLK_T_DISCARD, &[], 0)),
    ("a discard of half a range", Expect::Refused, |s| ranges(s, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)], 8)),
    ("a discard behind the end", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(SECTORS - 4, 8, 0)], 16);
    }),
    ("a discard that wraps", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(u64::MAX - 3, 8, 0)], 16);
    }),
    ("a discard of 2^32-1 sectors", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(0, u32::MAX, 0)], 16);
    }),
    ("a discard with the unmap flag", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(0, 8, 1)], 16);
    }),
    ("zeroes with unknown flags", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0xffff_fffe)], 16);
    }),
    ("zeroes behind the end", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_WRITE_ZEROES, &[(SECTORS, 1, 0)], 16);
    }),
    ("4,096 ranges to discard", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(8, 8, 0); 4096], 4096 * 16);
    }),
];

const READ_ONLY: &[Case] = &[
    ("a write to a read-only disk", Expect::Refused, |s| {
        s.request(VIRTIO_BLK_T_OUT, 0);
        s.chain(&[s.head(1), s.body(512, false, 2), s.tail()]);
    }),
    ("a discard on a read-only disk", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_DISCARD, &[(0, 8, 0)], 16);
    }),
    ("zeroes on a read-only disk", Expect::Refused, |s| {
        ranges(s, VIRTIO_BLK_T_WRITE_ZEROES, &[(0, 8, 0)], 16);
    }),
];

#[test]
fn every_walk_through_a_descriptor_table_ends() {
    try_all(WALKS, false);
}

#[test]
fn no_address_outside_guest_memory_is_used() {
    try_all(ADDRESSES, false);
}

#[test]
fn indirect_tables_are_bounded_and_never_nested() {
    try_all(INDIRECTS, false);
}

#[test]
fn requests_outside_the_disk_are_refused() {
    try_all(REQUESTS, false);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    try_all(READ_ONLY, true);
}

#[test]
fn an_indirect_table_that_was_not_negotiated_gets_a_defined_answer() {
    let house = House::new();
    let disk = house.disk("hostile", false);
    let scene = Scene::with_features(&house, &disk, 0);
    scene.indirect(&[scene.head(1), scene.body(512, true, 2), scene.tail()]);
    assert!(scene.offer(0).is_some());
    house.assert_one_worker();
}

/// Try each case on a fresh connection beside an honest guest in the same worker, and report all that went wrong.
fn try_all(cases: &[Case], read_only: bool) {
    let house = House::new();
    let disk = house.disk("hostile", read_only);
    let before = disk.contents();
    let neighbour = house.neighbour();
    let wrong: Vec<_> = cases.iter().filter_map(|case| try_one(&house, &disk, case)).collect();
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    neighbour.leave();
    house.assert_one_worker();
    if read_only {
        assert!(disk.contents() == before, "a read-only disk was written");
    }
}

fn try_one(house: &House, disk: &Disk, (name, expect, lay): &Case) -> Option<String> {
    let scene = Scene::new(house, disk);
    scene.request(VIRTIO_BLK_T_IN, 0);
    lay(&scene);
    let answer = scene.offer(0);
    if !expect.allows(answer) {
        return Some(format!("  {name}: want {expect:?}, got {answer:?}"));
    }
    if answer == Some(Answer::Broken) && !scene.told() {
        return Some(format!("  {name}: broken, but the err eventfd was not signalled"));
    }
    None
}

fn table_of(s: &Scene, len: u32) {
    if len < 16 * 0xffff {
        s.indirect(&[s.head(1), s.body(512, true, 2), s.tail()]);
    }
    s.chain(&[Descriptor { addr: s.table, len, flags: INDIRECT, next: 0 }]);
}

fn read_at(s: &Scene, sector: u64, len: u32) {
    s.request(VIRTIO_BLK_T_IN, sector);
    s.chain(&[s.head(1), s.body(len, true, 2), s.tail()]);
}

/// A discard or write-zeroes of these ranges (sector, sectors, flags), of which `len` bytes are in the chain.
fn ranges(s: &Scene, kind: u32, ranges: &[(u64, u32, u32)], len: u32) {
    s.request(kind, 0);
    for (index, (sector, sectors, flags)) in ranges.iter().enumerate() {
        let words = [*sector as u32, (*sector >> 32) as u32, *sectors, *flags];
        s.device.memory.put(s.data + 16 * index as u64, words);
    }
    if len == 0 {
        s.chain(&[s.head(1), s.tail()]);
    } else {
        s.chain(&[s.head(1), s.body(len, false, 2), s.tail()]);
    }
}
