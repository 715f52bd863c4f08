//! What waits in a leaf: one queue, or one for each flow.
//!
//! Of a disk, requests are started in the order in which they came. On a link, a guest's bulk transfer must not stand
//! before its own small requests: flows go by turns, by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), and
//! one that has just begun goes first, as in fq_codel (RFC 8290).

use std::collections::VecDeque;

/// Flows that a leaf tells apart. Those with the same number share a queue.
const BUCKETS: usize = 256;

/// Bytes of a flow's turn: one full frame of Ethernet.
pub(super) const QUANTUM: u32 = 1514;

/// Requests that wait in a leaf.
pub(super) enum Queue {
    Fifo(VecDeque<u32>),
    Flows(Flows),
}

impl Queue {
    pub fn len(&self) -> usize {
        match self {
            Queue::Fifo(queue) => queue.len(),
            Queue::Flows(flows) => flows.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next request, where that is known beforehand.
    pub fn front(&self) -> Option<u32> {
        match self {
            Queue::Fifo(queue) => queue.front().copied(),
            Queue::Flows(_) => None,
        }
    }

    pub fn push(&mut self, request: u32, flow: u8, bytes: u32) {
        match self {
            Queue::Fifo(queue) => queue.push_back(request),
            Queue::Flows(flows) => flows.push(request, flow, bytes),
        }
    }

    pub fn pop(&mut self) -> Option<u32> {
        match self {
            Queue::Fifo(queue) => queue.pop_front(),
            Queue::Flows(flows) => flows.pop(),
        }
    }

    /// Take `request` out, wherever it is. Frames have no names by which they could be.
    pub fn remove(&mut self, request: u32) {
        if let Queue::Fifo(queue) = self
            && let Some(place) = queue.iter().position(|other| *other == request)
        {
            queue.remove(place);
        }
    }

    /// The flows, of a leaf that has such.
    pub fn flows(&mut self) -> Option<&mut Flows> {
        match self {
            Queue::Fifo(_) => None,
            Queue::Flows(flows) => Some(flows),
        }
    }
}

/// Where a flow waits for its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// Nowhere: it has had nothing to send of late.
    #[default]
    None,
    /// Before all others: it has just begun.
    New,
    /// Among all others.
    Old,
}

#[derive(Clone, Default)]
struct Flow {
    /// Requests and their bytes.
    queue: VecDeque<(u32, u32)>,
    bytes: u64,
    /// Bytes that it may still send in this turn; below 0 if a frame was larger than that.
    deficit: i64,
    turn: Turn,
}

/// The flows of a leaf. There is no memory for them until one has to wait.
#[derive(Default)]
pub(super) struct Flows {
    flows: Vec<Flow>,
    new: VecDeque<u8>,
    old: VecDeque<u8>,
    len: usize,
    bytes: u64,
    /// Bytes of the largest frame since anything waits: by so much flows are ahead of one another.
    largest: u32,
}

impl Flows {
    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn push(&mut self, request: u32, number: u8, bytes: u32) {
        self.begin(number);
        self.largest = if self.len == 0 { bytes } else { self.largest.max(bytes) };
        let flow = &mut self.flows[usize::from(number)];
        flow.queue.push_back((request, bytes));
        flow.bytes += u64::from(bytes);
        self.bytes += u64::from(bytes);
        self.len += 1;
    }

    /// The flow has something to send: a turn, if it has none.
    fn begin(&mut self, number: u8) {
        self.flows.resize(BUCKETS, Flow::default());
        let flow = &mut self.flows[usize::from(number)];
        if flow.turn == Turn::None {
            (flow.turn, flow.deficit) = (Turn::New, QUANTUM.into());
            self.new.push_back(number);
        }
    }

    /// Whether the flow sends so little that its frame of so many bytes need not wait behind others: no more than a turn, or than
    /// the largest frame, which others have sent for one.
    pub fn is_sparse(&self, number: u8, bytes: u32) -> bool {
        if self.len == 0 || bytes > QUANTUM {
            return bytes <= QUANTUM;
        }
        let flow = &self.flows[usize::from(number)];
        let least = i64::from(QUANTUM) - i64::from(self.largest.max(QUANTUM));
        flow.turn == Turn::None || (flow.queue.is_empty() && flow.deficit > least)
    }

    /// A frame of a sparse flow goes at once, while others of the leaf may wait. It takes from the flow's turn.
    pub fn pass(&mut self, number: u8, bytes: u32) {
        if self.len > 0 {
            self.begin(number);
            self.flows[usize::from(number)].deficit -= i64::from(bytes);
            return;
        }
        // Nobody waits for a turn.
        for number in self.new.drain(..).chain(self.old.drain(..)) {
            self.flows[usize::from(number)].turn = Turn::None;
        }
    }

    fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        loop {
            let (number, is_new) = match self.new.front() {
                Some(number) => (*number, true),
                None => (*self.old.front()?, false),
            };
            let alone = self.new.len() + self.old.len() == 1;
            let flow = &mut self.flows[usize::from(number)];
            if flow.deficit <= 0 && alone {
                flow.deficit = QUANTUM.into();
            } else if flow.deficit <= 0 {
                flow.deficit += i64::from(QUANTUM);
                self.end_turn(is_new, Turn::Old);
                continue;
            }
            match flow.queue.pop_front() {
                Some((request, bytes)) => {
                    flow.deficit -= i64::from(bytes);
                    flow.bytes -= u64::from(bytes);
                    self.bytes -= u64::from(bytes);
                    self.len -= 1;
                    return Some(request);
                }
                // A new one becomes an old one first, or it would be new again and again, before all others.
                None if is_new && !self.old.is_empty() => self.end_turn(true, Turn::Old),
                None => self.end_turn(is_new, Turn::None),
            }
        }
    }

    /// The turn of the flow at the front of the new or the old ones is over.
    fn end_turn(&mut self, is_new: bool, next: Turn) {
        let list = if is_new { &mut self.new } else { &mut self.old };
        let Some(number) = list.pop_front() else { return };
        self.flows[usize::from(number)].turn = next;
        if next == Turn::Old {
            self.old.push_back(number);
        }
    }

    /// Take out the frame that has waited for longest in the flow with the most bytes.
    pub fn shed(&mut self) -> Option<u32> {
        let longest = self.flows.iter_mut().max_by_key(|flow| flow.bytes)?;
        let (request, bytes) = longest.queue.pop_front()?;
        longest.bytes -= u64::from(bytes);
        self.bytes -= u64::from(bytes);
        self.len -= 1;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_pushed_comes_out_once_and_in_its_flows_order(
            steps in proptest::collection::vec((0..6u8, 1..70_000u32, 0..6u8), 1..200)
        ) {
            let mut flows = Flows::default();
            let mut model: BTreeMap<u8, VecDeque<u32>> = BTreeMap::new();
            let mut flow_of = Vec::new();
            for (flow, bytes, step) in steps {
                match step {
                    0..3 => {
                        let request = flow_of.len() as u32;
                        flow_of.push(flow);
                        model.entry(flow).or_default().push_back(request);
                        flows.push(request, flow, bytes);
                    }
                    3 if flows.is_sparse(flow, bytes) => flows.pass(flow, bytes),
                    3 => {}
                    4 => {
                        let popped = flows.shed();
                        prop_assert_eq!(popped.is_none(), model.values().all(VecDeque::is_empty));
                        if let Some(request) = popped {
                            let flow = flow_of[request as usize];
                            prop_assert_eq!(model.get_mut(&flow).unwrap().pop_front(), Some(request));
                        }
                    }
                    _ => {
                        let popped = flows.pop();
                        prop_assert_eq!(popped.is_none(), model.values().all(VecDeque::is_empty));
                        if let Some(request) = popped {
                            let flow = flow_of[request as usize];
                            prop_assert_eq!(model.get_mut(&flow).unwrap().pop_front(), Some(request));
                        }
                    }
                }
                prop_assert_eq!(flows.len, model.values().map(VecDeque::len).sum::<usize>());
            }
            while flows.pop().is_some() {}
            prop_assert_eq!((flows.len, flows.bytes), (0, 0));
        }
    }

    #[test]
    fn flows_with_frames_of_any_size_get_the_same_bytes() {
        let mut flows = Flows::default();
        let sizes = [100, 1514, 65_000];
        let mut sent = [0u64; 3];
        for number in 0..3u8 {
            for request in 0..20_000 {
                flows.push(request * 3 + u32::from(number), number, sizes[usize::from(number)]);
            }
        }
        while sent[0] < 1_000_000 {
            let number = flows.pop().unwrap() as usize % 3;
            sent[number] += u64::from(sizes[number]);
        }
        for bytes in sent {
            assert!(bytes.abs_diff(sent[0]) <= 70_000, "{sent:?}");
        }
    }

    #[test]
    fn a_flow_that_has_just_begun_goes_first_but_not_for_ever() {
        let mut flows = Flows::default();
        for request in 0..1000 {
            flows.push(request, 1, 1500);
        }
        for _ in 0..10 {
            flows.pop();
        }
        let mut waits = Vec::new();
        for request in 1000..1100 {
            flows.push(request, 2, 1500);
            let mut turns = 0;
            while flows.pop() != Some(request) {
                turns += 1;
            }
            waits.push(turns);
        }
        assert_eq!(waits[0], 0);
        assert!(waits.iter().all(|turns| *turns <= 2) && waits.iter().sum::<i32>() >= 50, "{waits:?}");
    }
}
