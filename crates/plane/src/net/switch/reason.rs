//! Why a frame went nowhere.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame was dropped; counted at the port that is to blame, or that it was for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All of them; the place in it is the place of the counter.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)*];

            /// As `query-ports` names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Shorter than its headers say, or headers that contradict each other.
    Malformed = "malformed",
    /// Headers so long that they cannot be checked.
    TooDeep = "headers-too-long",
    /// Not from the port's own MAC address.
    MacSpoof = "mac-spoof",
    /// From a MAC address that another port has.
    MacInUse = "mac-in-use",
    /// Not from one of the port's IPv4 addresses.
    Ipv4Spoof = "ipv4-spoof",
    /// Not from one of the port's IPv6 addresses.
    Ipv6Spoof = "ipv6-spoof",
    /// ARP that speaks for another.
    ArpSpoof = "arp-spoof",
    /// Neighbour discovery that speaks for another.
    NdSpoof = "nd-spoof",
    /// An answer of a DHCP server that the port is not.
    DhcpServer = "dhcp-server",
    /// Router advertisement, or redirect, of a router that the port is not.
    RouterAdvertisement = "router-advertisement",
    /// A protocol whose sender cannot be checked.
    Ethertype = "ethertype",
    /// A VLAN that the port is not in, or two tags.
    Vlan = "vlan",
    /// To an address that bridges keep to themselves (IEEE 802.1D, 7.12.6).
    Reserved = "reserved-address",
    /// More broadcasts than the port may send.
    StormBroadcast = "storm-broadcast",
    /// More multicasts than the port may send.
    StormMulticast = "storm-multicast",
    /// More frames to unknown addresses than the port may send.
    StormUnknown = "storm-unknown",
    /// Between two ports of which one is isolated.
    Isolated = "isolated",
    /// To an address that only the host itself may connect to.
    Martian = "martian",
    /// The receiver is the sender.
    Hairpin = "hairpin",
    /// No row of the security rules allows it.
    Security = "security",
    /// Lost on purpose.
    FaultLoss = "fault-loss",
    /// Parted on purpose.
    FaultPartition = "fault-partition",
    /// Too many frames are delayed on purpose.
    FaultBacklog = "fault-backlog",
    /// The receiver has no room.
    NoBuffer = "no-buffer",
    /// The receiver is not there, or has its link down.
    LinkDown = "link-down",
    /// Larger than the port's MTU.
    Oversize = "oversize",
    /// The virtio-net header makes no sense (virtio 1.3, 5.1.6.2).
    BadHeader = "bad-header",
    /// The uplink takes no more.
    UplinkFull = "uplink-full",
    /// The queue that a limit keeps it in is full.
    QueueFull = "queue-full",
}

/// How often, by place in [`DropReason::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Drops {
        Drops([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Count `frames` more.
    pub fn add(&mut self, reason: DropReason, frames: u32) {
        self.0[reason as usize] += u64::from(frames);
    }

    /// How many.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Those that happened.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.get(*reason))).filter(|(_, count)| *count > 0)
    }
}
