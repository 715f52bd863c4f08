//! Flushes of a device: one at the disk at a time, and none that succeeds after one has failed.
//!
//! Linux tells each open file of a lost write once: the fsync that meets it fails, and the next one succeeds, though
//! what was lost is not there. So the first flush that fails is noted in the device's page, where a later worker finds
//! it too, and all that follow fail until the disk is opened anew. Two at a time could not be told apart: one
//! takes the error, the other would succeed. Those that come while one is at the disk share the next one.

/// Slots of the flushes that are under way.
#[derive(Default)]
pub struct Flushes {
    running: Option<u16>,
    joined: Vec<u16>,
    waiting: Vec<u16>,
}

/// How a flush at the disk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is durable.
    Durable,
    /// Nothing is lost, but not all is written: the others have to go themselves.
    Unfinished,
    /// What was lost nobody knows.
    Failed,
}

impl Flushes {
    /// Whether the flush in `slot` goes to the disk now; if not, it waits for the next.
    pub fn begin(&mut self, slot: u16) -> bool {
        if self.is_running(slot) {
            return true;
        }
        if self.running.is_some() {
            self.waiting.push(slot);
            return false;
        }
        self.running = Some(slot);
        true
    }

    /// Whether it is the one at the disk.
    pub fn is_running(&self, slot: u16) -> bool {
        self.running == Some(slot)
    }

    /// The one at the disk has ended: who shares its result, and who goes next.
    pub fn end(&mut self, end: End) -> (Vec<u16>, Option<u16>) {
        self.running = None;
        let mut shared = std::mem::take(&mut self.joined);
        match end {
            End::Durable => {}
            End::Unfinished => self.waiting.append(&mut shared),
            End::Failed => shared.append(&mut self.waiting),
        }
        let mut waiting = std::mem::take(&mut self.waiting).into_iter();
        self.running = waiting.next();
        self.joined = waiting.collect();
        (shared, self.running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_come_meanwhile_share_the_next_one() {
        let mut flushes = Flushes::default();
        assert!(flushes.begin(1) && !flushes.begin(2) && !flushes.begin(3) && flushes.begin(1));
        assert_eq!(flushes.end(End::Durable), (vec![], Some(2)));
        assert!(flushes.begin(2) && !flushes.begin(4));
        assert_eq!(flushes.end(End::Durable), (vec![3], Some(4)));
        assert_eq!(flushes.end(End::Durable), (vec![], None));
    }

    #[test]
    fn a_failure_is_everybodys() {
        let mut flushes = Flushes::default();
        assert!(flushes.begin(1) && !flushes.begin(2));
        flushes.end(End::Durable);
        assert!(!flushes.begin(3));
        assert_eq!(flushes.end(End::Failed), (vec![3], None));
    }

    #[test]
    fn one_that_gives_up_leaves_the_others_to_try() {
        let mut flushes = Flushes::default();
        assert!(flushes.begin(1) && !flushes.begin(2) && !flushes.begin(3));
        flushes.end(End::Durable);
        assert_eq!(flushes.end(End::Unfinished), (vec![], Some(3)));
    }
}
