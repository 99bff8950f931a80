//! Another program changes the maps, and an audit repairs them.

use super::*;
use crate::apply::Audit;
use crate::apply::memory::MemoryState;
use crate::apply::tables::ServiceAddress;

/// Service ports with every kind of entry.
fn installed() -> (Memory, Engine<Memory>) {
    let memory = Memory::roomy(Instant::now());
    let (mut engine, now) = (engine(&memory), memory.state().now);
    for number in 1..=3 {
        let wanted = Spec {
            port: 80 + u16::from(number),
            v6: BTreeMap::from([(9, (true, false))]),
            node_port: true,
            dual: true,
            balancer: Some(Some(BTreeSet::from([1, 2]))),
            ..spec(number, &[1, 2, 3])
        }
        .wanted();
        engine.apply(&wanted, now).expect("applied");
    }
    (memory, engine)
}

/// A change that another program makes.
type Change = fn(&mut MemoryState);

/// Runs a whole audit in small steps. Returns what it found.
fn audit(engine: &mut Engine<Memory>) -> Vec<String> {
    let (mut audit, mut found) = (Audit::default(), Vec::new());
    for _ in 0..1000 {
        found.extend(engine.audit(&mut audit, 5).expect("compared"));
        if audit.is_done() {
            return found;
        }
    }
    panic!("the audit does not end");
}

/// The content of the maps.
fn content(memory: &Memory) -> (Meaning, Vec<u32>, BTreeMap<u32, u32>) {
    let meaning = meaning(memory);
    let state = memory.state();
    (meaning, state.slots.clone(), state.cursors.clone())
}

#[test]
fn nothing_is_written_if_nothing_differs() {
    let (memory, mut engine) = installed();
    let writes = memory.state().writes;
    assert_eq!(audit(&mut engine), [""; 0]);
    assert_eq!(memory.state().writes, writes);
}

#[test]
fn every_kind_of_entry_is_repaired() {
    let changes: [(&str, Change); 12] = [
        ("IPv4 nodePort 30001 TCP of", |state| assert!(state.services.pop_first().is_some())),
        ("TCP of", |state| state.services.values_mut().for_each(|value| value.affinity_seconds = 7)),
        ("nodePort 9 TCP, which", |state| {
            let key = ServiceAddress { ip: Ipv4Addr::UNSPECIFIED.into(), port: 9, protocol: 6 };
            let value = *state.services.values().next().expect("an entry");
            state.services.insert(key, value);
        }),
        ("the name of", |state| assert!(state.names.pop_first().is_some())),
        ("the name of", |state| state.names.values_mut().for_each(|name| name.port = 1)),
        ("endpoint", |state| assert!(state.backends.v4.pop_first().is_some())),
        ("endpoint", |state| state.backends.v6.values_mut().for_each(|backend| backend.flags = 1)),
        ("a list of endpoints", |state| state.slots.fill(0)),
        ("a list of endpoints", |state| state.cursors.clear()),
        ("a list of endpoints", |state| state.cursors.values_mut().for_each(|next| *next = 99)),
        ("the flags of address", |state| state.marks.clear()),
        ("source range", |state| assert!(state.source_ranges.pop_first().is_some())),
    ];
    for (text, change) in changes {
        let (memory, mut engine) = installed();
        let before = content(&memory);
        change(&mut memory.state_mut());
        let found = audit(&mut engine);
        assert!(found.iter().any(|found| found.contains(text)), "{text}: {found:?}");
        assert_eq!(content(&memory), before, "{text}");
        assert_eq!(audit(&mut engine), [""; 0], "{text}");
        assert_nothing_leaks(&engine, &memory);
    }
}

#[test]
fn an_audit_ends_while_services_change() {
    let (memory, mut engine) = installed();
    let mut audit = Audit::default();
    engine.audit(&mut audit, 1).expect("compared");
    let now = memory.state().now;
    engine.remove(&id(1), now).expect("removed");
    engine.remove(&id(2), now).expect("removed");
    for _ in 0..1000 {
        assert_eq!(engine.audit(&mut audit, 1).expect("compared"), [""; 0]);
    }
    assert!(audit.is_done());
}
