//! SCTP chunks (RFC 9260) as TCP flags, so that one pipeline serves both protocols.

use crate::layout::tcp_flags::{ACK, FIN, RST, SYN};

/// Chunk types (RFC 9260 3.2).
mod chunk {
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Returns the TCP flags that correspond to a packet whose first chunk has this type.
///
/// A chunk that opens or ends an association is the first or the only one of its packet (RFC 9260
/// 6.10), with two exceptions: ABORT and SHUTDOWN may follow other chunks. These are not detected,
/// and the flow ends with its time-out.
///
/// * INIT opens an association, but only with a verification tag of zero (RFC 9260 8.5.1).
/// * SHUTDOWN and SHUTDOWN ACK close one side each.
/// * ABORT and SHUTDOWN COMPLETE end the association.
/// * A host sends any other chunk only after it has received one from the peer: it corresponds to
///   an ACK.
#[inline(always)]
pub const fn signals(verification_tag: u32, first_chunk: u8) -> u8 {
    match first_chunk {
        chunk::INIT if verification_tag == 0 => SYN,
        chunk::INIT => 0,
        chunk::INIT_ACK => SYN | ACK,
        chunk::SHUTDOWN | chunk::SHUTDOWN_ACK => FIN | ACK,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE => RST,
        _ => ACK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_correspond_to_the_segments_of_a_tcp_connection() {
        const DATA: u8 = 0;
        const HEARTBEAT: u8 = 4;
        const COOKIE_ECHO: u8 = 10;
        assert_eq!(signals(0, chunk::INIT), SYN);
        assert_eq!(signals(7, chunk::INIT_ACK), SYN | ACK);
        for first in [COOKIE_ECHO, DATA, HEARTBEAT] {
            assert_eq!(signals(7, first), ACK);
        }
        assert_eq!(signals(7, chunk::SHUTDOWN), FIN | ACK);
        assert_eq!(signals(7, chunk::SHUTDOWN_ACK), FIN | ACK);
        assert_eq!(signals(7, chunk::SHUTDOWN_COMPLETE), RST);
        assert_eq!(signals(7, chunk::ABORT), RST);
    }

    #[test]
    fn an_init_with_a_tag_is_no_init() {
        assert_eq!(signals(1, chunk::INIT), 0);
    }
}
