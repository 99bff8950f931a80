//! The translation of a packet of a connection.

use lb_common::layout::{Flow, deliver, direction};

/// The tuple that a packet leaves with, and its delivery: a copy of the parts of a record that
/// concern the packet's direction. It is a copy because the record may be given to another
/// connection while the packet is handled.
#[repr(C)]
pub struct Translation<A> {
    pub new_src_addr: A,
    pub new_dst_addr: A,
    pub new_src_port: u16,
    pub new_dst_port: u16,
    /// One of [`direction`].
    pub direction: u8,
    /// One of [`deliver`].
    pub deliver: u8,
    pub pad: [u8; 2],
    /// The endpoint that a new connection of this packet does not get, because it has not answered
    /// the client. 0: none.
    pub avoid: u32,
    /// Interface index of the device that the first packet of the connection arrived by.
    pub ifindex: u32,
}

impl<A: Copy> Translation<A> {
    /// Returns whether the packet is a reply that continues on its path.
    #[inline(always)]
    pub fn is_passing_reply(&self) -> bool {
        self.direction == direction::REPLY && self.deliver == deliver::PASS
    }

    /// Fills in the translation of packets of one direction.
    #[inline(always)]
    pub fn set(&mut self, flow: &Flow<A>, direction: u8) {
        if direction == direction::REQUEST {
            self.new_src_addr = flow.source_addr;
            self.new_dst_addr = flow.backend_addr;
            self.new_src_port = flow.source_port;
            self.new_dst_port = flow.backend_port;
        } else {
            self.new_src_addr = flow.service_addr;
            self.new_dst_addr = flow.client_addr;
            self.new_src_port = flow.service_port;
            self.new_dst_port = flow.client_port;
        }
        self.direction = direction;
        self.deliver = flow.deliver;
        self.ifindex = flow.ifindex;
    }
}
