//! Route lookups in the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::NodeError;

/// Returns the index of the device by which the kernel sends packets to an address. `None` if there
/// is no route.
pub async fn device_to(ip: IpAddr) -> Result<Option<u32>, NodeError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NodeError::Socket)?;
    let connection = tokio::spawn(connection);
    let device = look_up_device(&handle, ip).await;
    connection.abort();
    device
}

/// Does the same as [`device_to`], on an open netlink connection.
pub async fn look_up_device(handle: &Handle, ip: IpAddr) -> Result<Option<u32>, NodeError> {
    let request = match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    };
    let routes: Vec<_> = match handle.route().get(request).execute().try_collect().await {
        Ok(routes) => routes,
        // ENETUNREACH, or the error of an unreachable, prohibit or blackhole route.
        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(None),
        Err(source) => return Err(NodeError::Read { what: "a route", source: Box::new(source) }),
    };
    let devices = routes.iter().flat_map(|route| &route.attributes).filter_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Ok(devices.into_iter().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_host_is_reached_by_its_loopback_device() {
        let device = device_to("127.0.0.1".parse().unwrap()).await.unwrap();
        assert_eq!(device, Some(1));
    }
}
