use super::*;

const BROADCAST: Mac = [0xff; 6];

fn mac(last: u8) -> Mac {
    [0x52, 0x54, 0, 0, 0, last]
}

fn frame(to: Mac, from: Mac) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([8, 6]);
    frame.resize(60, 0);
    frame
}

/// Guests 1 and 2, and uplink 3.
fn switch() -> Switch {
    let mut switch = Switch::new();
    switch.add_port(1, PortKind::Guest, Some(mac(1)), Rules::default()).unwrap();
    switch.add_port(2, PortKind::Guest, Some(mac(2)), Rules::default()).unwrap();
    switch.add_port(3, PortKind::Uplink, None, Rules::default()).unwrap();
    switch
}

fn send(
    switch: &mut Switch,
    now: Nanos,
    from: PortId,
    mut frame: Vec<u8>,
) -> Result<Vec<PortId>, DropReason> {
    let mut out = Vec::new();
    let length = frame.len();
    switch.decide(now, from, &mut frame, length, 1, &mut out)?;
    Ok(out.iter().map(|delivery| delivery.port).collect())
}

#[test]
fn a_broadcast_goes_to_all_others_and_a_known_address_to_one() {
    let mut switch = switch();
    assert_eq!(send(&mut switch, 0, 1, frame(BROADCAST, mac(1))), Ok(vec![2, 3]));
    assert_eq!(send(&mut switch, 0, 1, frame(mac(2), mac(1))), Ok(vec![2]));
    assert_eq!(send(&mut switch, 0, 1, frame(mac(9), mac(1))), Ok(vec![2, 3]));
    assert_eq!(send(&mut switch, 0, 3, frame(mac(1), mac(9))), Ok(vec![1]));
    assert_eq!(send(&mut switch, 0, 1, frame(mac(9), mac(1))), Ok(vec![3]));
    assert_eq!(send(&mut switch, fdb::AGE, 1, frame(mac(9), mac(1))), Ok(vec![2, 3]));
}

#[test]
fn nobody_takes_the_address_of_a_guest() {
    let mut switch = switch();
    assert_eq!(send(&mut switch, 0, 1, frame(mac(2), mac(9))), Err(DropReason::MacSpoof));
    assert_eq!(send(&mut switch, 0, 3, frame(mac(2), mac(1))), Err(DropReason::MacInUse));
    switch.set_rules(1, Rules { spoof: true, ..Rules::default() }).unwrap();
    assert_eq!(send(&mut switch, 0, 1, frame(mac(2), mac(9))), Ok(vec![2]));
    assert_eq!(send(&mut switch, 0, 1, frame(mac(3), mac(2))), Err(DropReason::MacInUse));
    assert_eq!(switch.drops(1).unwrap().get(DropReason::MacSpoof), 1);
    assert_eq!(switch.drops(1).unwrap().get(DropReason::MacInUse), 1);
}

#[test]
fn learnt_addresses_are_bounded_and_forgotten() {
    let mut switch = switch();
    switch.set_rules(1, Rules { spoof: true, ..Rules::default() }).unwrap();
    for number in 0..2 * GUEST_ADDRESSES {
        let [_, _, c, d] = number.to_be_bytes();
        send(&mut switch, 0, 1, frame(mac(2), [2, 0, 0, 0, c, d])).unwrap();
    }
    assert_eq!(switch.learnt(1), GUEST_ADDRESSES);
    for _ in 0..2 {
        send(&mut switch, fdb::AGE, 1, frame(mac(2), [2, 0, 0, 1, 0, 0])).unwrap();
    }
    assert_eq!(switch.learnt(1), 1);
    switch.remove_port(1);
    assert_eq!(send(&mut switch, 0, 2, frame(mac(1), mac(2))), Ok(vec![3]));
}
