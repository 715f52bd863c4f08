//! A tap is an uplink. In a network namespace of the test's own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use nagaya_client::NetOptions;

use crate::street::{PATIENCE, Street, frame, mac, send};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
/// IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
const FLAGS: libc::c_short = 0x5002;

/// A tap `t0` that is up, with an address of this test's; all of it goes with the thread. `None` if this user may not.
fn tap() -> Option<File> {
    // SAFETY: passes no pointer; concerns this thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return None;
    }
    let tun = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = tun.expect("/dev/net/tun");
    // SAFETY: all zeroes is a valid ifreq; the ioctls read what they are given.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..2].copy_from_slice(&[b't' as libc::c_char, b'0' as libc::c_char]);
        request.ifr_ifru.ifru_flags = FLAGS;
        assert_eq!(libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &request), 0);
        let size: libc::c_int = 12;
        assert_eq!(libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ, &size), 0);
    }
    for arguments in ["addr add 10.1.1.1/24 dev t0", "link set t0 addrgenmode none", "link set t0 up"] {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (package iproute2)");
        assert!(status.success(), "ip {arguments}");
    }
    Some(tun)
}

/// Who has 10.1.1.1? Tell 10.1.1.2 (RFC 826).
fn request() -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([&mac(1)[..], &[10, 1, 1, 2], &[0; 6], &[10, 1, 1, 1]].concat());
    let mut request = frame([0xff; 6], mac(1), &arp);
    request[12..14].copy_from_slice(&[8, 6]);
    request
}

#[test]
fn the_kernel_behind_a_tap_answers() {
    let Some(tun) = tap() else { return println!("skipped: making network namespaces takes root") };
    let street = Street::new();
    street.uplink("tap", tun.into());
    let mut a = street.guest(1, NetOptions::default());
    let request = request();
    send(&mut a, &request);
    let (_, answer) = a.wait(PATIENCE).unwrap().expect("an answer");
    assert_eq!((&answer[..6], &answer[12..14], answer[21]), (&mac(1)[..], &[8, 6][..], 2));
    assert_eq!(answer[28..32], [10, 1, 1, 1]);
    let uplink = street.query("%test/uplink");
    assert_eq!((&uplink["rx_packets"], &uplink["tx_packets"]), (&1.into(), &1.into()));
}
