//! Frames with a VLAN tag that arrive at a device without VLAN devices above it.

use anyhow::{Result, ensure};
use lb_testbed::host::{Datagrams, FloodKind};
use lb_testbed::report::FailureKind;
use lb_testbed::{AttachMode, Family};

use crate::check::{answered_by, eventually, failed_as, refused};
use crate::world::{Published, To, World};

const DATAGRAMS: Datagrams = Datagrams { connected: false, count: 2, size: 32, dont_fragment: false };
const ONE: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };

/// Returns the places of a tag that are tested: true is in the bytes of the frame, false is beside
/// them.
///
/// An XDP program does not see a tag beside the bytes. A NIC that removes tags drops the frames of
/// VLANs without a device. The NICs of the testbed do not, so XDP is tested with tags in the bytes.
fn places(world: &World) -> &'static [bool] {
    if world.topology.datapath == AttachMode::Xdp { &[true] } else { &[true, false] }
}

/// A tag with id 0 carries a priority only: the frame belongs to the device itself.
pub fn priority_tags_are_ignored(world: &mut World) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        for in_bytes in places(world) {
            world.topology.tag_frames_to(0, "id 0 priority 5", *in_bytes)?;
            for family in Family::BOTH {
                let at = |to| service.node_port(world.node(0), family, to);
                answered_by(&world.client().get(&[at(To::Http)], 3)?, &[endpoint])?;
                answered_by(&world.client().send_datagrams(at(To::Udp), DATAGRAMS)?, &[endpoint])?;
            }
            world.topology.tag_no_frames_to(0)?;
        }
    }
    Ok(())
}

/// A frame of a VLAN for which the node has no device is not for this node. It opens no connection,
/// and it is not refused.
pub fn frames_of_other_vlans_are_ignored(world: &mut World) -> Result<()> {
    let (local, remote) = (world.publish(&[1])?, world.publish(&[3])?);
    let empty = world.publish(&[1])?;
    world.set_endpoints(&empty, &[])?;
    let at = |world: &World, service: &Published, family, to| service.node_port(world.node(0), family, to);
    for family in Family::BOTH {
        let target = at(world, &empty, family, To::Udp);
        eventually(|| refused(&world.client().send_datagrams(target, ONE)?))?;
    }
    for in_bytes in places(world) {
        world.topology.tag_frames_to(0, "id 7", *in_bytes)?;
        for family in Family::BOTH {
            let client = world.client().address(family);
            for service in [&local, &remote] {
                world.client().flood(FloodKind::Datagrams, at(world, service, family, To::Udp), 20)?;
            }
            let target = at(world, &empty, family, To::Udp);
            failed_as(&world.client().send_datagrams(target, ONE)?, FailureKind::TimedOut)?;
            for service in [&local, &remote] {
                let flows = world.flows(client, at(world, service, family, To::Udp))?;
                ensure!(flows == 0, "a frame of another VLAN opened a connection");
            }
        }
        let target = at(world, &empty, Family::V4, To::Http);
        failed_as(&world.client().get(&[target], 1)?, FailureKind::TimedOut)?;
        world.topology.tag_no_frames_to(0)?;
    }
    Ok(())
}
