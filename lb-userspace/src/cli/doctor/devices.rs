//! The programs at the hooks of network devices.

use std::io;

use futures::TryStreamExt;
use lb_datapath::attachments::{program_name, tc_filters, tcx_programs};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use crate::cli::cleanup::filters::Netlink;
use crate::view::doctor::{Checked, DevicePrograms};

/// Returns the devices of this network namespace that have a program, or whose programs cannot be
/// listed. Looks at the device with the index `only`, if there is one.
pub async fn read(only: Option<u32>) -> io::Result<Vec<DevicePrograms>> {
    let netlink = Netlink::open()?;
    let links: Vec<LinkMessage> =
        netlink.handle().link().get().execute().try_collect().await.map_err(io::Error::other)?;
    let mut devices = Vec::new();
    for link in links.into_iter().filter(|link| only.is_none_or(|only| link.header.index == only)) {
        let index = link.header.index;
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let [mut ingress, mut egress] = tcx(index);
        // Filters run after tcx programs.
        let filters = [true, false].map(|ingress| filter_programs(index, ingress));
        for (programs, filters) in [&mut ingress, &mut egress].into_iter().zip(filters) {
            if let Ok(programs) = programs {
                programs.extend(filters);
            }
        }
        let is_empty = |programs: &Checked<Vec<String>>| programs.as_ref().is_ok_and(Vec::is_empty);
        let xdp = xdp_program(&link).map(program_name);
        if xdp.is_some() || !is_empty(&ingress) || !is_empty(&egress) {
            let name = name.unwrap_or_else(|| format!("interface {index}"));
            devices.push(DevicePrograms { name, xdp, ingress, egress });
        }
    }
    Ok(devices)
}

/// Returns the tcx programs at ingress and egress.
fn tcx(index: u32) -> [Checked<Vec<String>>; 2] {
    match tcx_programs(index) {
        Ok(hooks) => {
            let mut programs = hooks.into_iter().map(|hook| hook.programs);
            [Ok(programs.next().unwrap_or_default()), Ok(programs.next().unwrap_or_default())]
        }
        // The kernel has no tcx (Linux 6.6).
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => [Ok(vec![]), Ok(vec![])],
        Err(error) => {
            let reason = format!("cannot list the programs of devices: {error}");
            [Err(reason.clone()), Err(reason)]
        }
    }
}

/// Returns the names of the programs that the filters of a device run.
fn filter_programs(index: u32, ingress: bool) -> impl Iterator<Item = String> {
    // The kernel returns an error for a device that was removed in the meantime.
    let filters = tc_filters(index, ingress).unwrap_or_default().into_iter();
    filters.filter_map(|filter| filter.program).map(|program| program.name)
}

/// Returns the id of the XDP program.
fn xdp_program(link: &LinkMessage) -> Option<u32> {
    let xdp = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    })?;
    xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) if *id != 0 => Some(*id),
        _ => None,
    })
}
