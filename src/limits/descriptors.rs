//! How many of the process's descriptors clients' connections may have, and how many they need.

/// Descriptors that are kept from clients' connections where there are plenty: for the store, the listeners, callers.
const DESCRIPTORS_BESIDE_CLIENTS: u64 = 2048;
/// As many as callers have by default (`grpc.max_connections`), where there are few.
const DESCRIPTORS_BESIDE_CLIENTS_MIN: u64 = 1024;

/// The clients' connections that so many descriptors have room for. Kept from them are a sixteenth within these bounds, and
/// never more than half.
pub fn room_for_clients(descriptors: u64) -> u64 {
    let beside = (descriptors / 16).clamp(DESCRIPTORS_BESIDE_CLIENTS_MIN, DESCRIPTORS_BESIDE_CLIENTS);
    descriptors - beside.min(descriptors / 2)
}

/// As many descriptors as have room for so many clients' connections.
pub fn descriptors_for_clients(clients: u64) -> u64 {
    // A fifteenth of what is left is a sixteenth of all.
    let beside = clients.div_ceil(15).clamp(DESCRIPTORS_BESIDE_CLIENTS_MIN, DESCRIPTORS_BESIDE_CLIENTS);
    clients.saturating_add(beside.min(clients))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_clients_that_descriptors_are_asked_for() {
        for clients in [0, 1, 500, 1024, 1025, 15_360, 15_361, 16_000, 20_000, 30_720, 30_721, 100_000, 1 << 40] {
            let needed = descriptors_for_clients(clients);
            assert!(room_for_clients(needed) >= clients, "{clients}: {needed}");
            // And hardly more than that.
            assert!(needed < 3 || room_for_clients(needed - 2) < clients, "{clients}: {needed}");
        }
        assert_eq!((descriptors_for_clients(100_000), room_for_clients(102_048)), (102_048, 100_000));
        assert_eq!((room_for_clients(20_000), room_for_clients(1000), room_for_clients(0)), (18_750, 500, 0));
        assert_eq!(descriptors_for_clients(u64::MAX), u64::MAX);
    }
}
