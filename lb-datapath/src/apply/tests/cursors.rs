//! Slots that are used in turn: the cursor of a range that replaces another one.

use super::*;

/// A Service port with the algorithm `rr`.
fn in_turn(endpoints: &[u8]) -> DesiredServicePort {
    Spec { port: 81, ..spec(1, endpoints) }.wanted()
}

/// Selects `turns` endpoints as the programs do. Returns the last byte of their addresses.
fn take_turns(memory: &Memory, turns: usize) -> Vec<u8> {
    let mut state = memory.state_mut();
    let [range, _] = slot_ranges(state.services.values().next().expect("the Service"));
    let mut taken = Vec::new();
    for _ in 0..turns {
        let next = state.cursors[&range.base];
        let id = state.slots[(range.base + next) as usize];
        let IpAddr::V4(ip) = state.backends.v4[&id].address.ip() else { panic!("an IPv6 endpoint") };
        taken.push(ip.octets()[3]);
        state.cursors.insert(range.base, (next + 1) % range.count);
    }
    taken
}

#[test]
fn no_endpoint_is_skipped_or_repeated_when_others_change() {
    let memory = Memory::roomy(Instant::now());
    let (mut engine, now) = (engine(&memory), memory.state().now);
    let mut change = |endpoints: &[u8]| engine.apply(&in_turn(endpoints), now).expect("applied");
    change(&[1, 2, 3, 4]);
    assert_eq!(take_turns(&memory, 5), [1, 2, 3, 4, 1]);
    change(&[1, 3, 4]);
    assert_eq!(take_turns(&memory, 2), [3, 4], "2 had the next turn and is gone");
    change(&[3, 4]);
    assert_eq!(take_turns(&memory, 2), [3, 4], "1 had the next turn and is gone");
    change(&[2, 3, 4]);
    assert_eq!(take_turns(&memory, 3), [3, 4, 2], "2 is new");
    change(&[7, 8]);
    assert_eq!(take_turns(&memory, 3), [7, 8, 7], "all are new");
}

#[test]
fn a_restart_keeps_the_turn() {
    let memory = Memory::roomy(Instant::now());
    let now = memory.state().now;
    engine(&memory).apply(&in_turn(&[1, 2, 3]), now).expect("applied");
    assert_eq!(take_turns(&memory, 2), [1, 2]);
    let mut restarted = engine(&memory);
    restarted.apply(&in_turn(&[1, 2, 3]), now).expect("applied");
    assert_eq!(take_turns(&memory, 2), [3, 1]);
}

#[test]
fn cursors_leave_with_their_ranges_and_missing_ones_are_added() {
    let memory = Memory::roomy(Instant::now());
    let (mut first, now) = (engine(&memory), memory.state().now);
    first.apply(&in_turn(&[1, 2]), now).expect("applied");
    let base = *memory.state().cursors.keys().next().expect("a cursor");
    first.remove(&id(1), now).expect("removed");
    first.tick(now);
    assert!(memory.state().cursors.is_empty());

    first.apply(&in_turn(&[1, 2]), now).expect("applied");
    let used = *memory.state().cursors.keys().next().expect("a cursor");
    memory.state_mut().cursors = BTreeMap::from([(base + 100, 3)]);
    engine(&memory);
    assert_eq!(memory.state().cursors, BTreeMap::from([(used, 0)]));
}
