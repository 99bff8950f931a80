//! Compares the maps with the records of the engine, a few entries at a time, and repairs what
//! another program has changed.

use std::sync::Arc;

use lb_model::IpFamily;
use lb_plan::desired::ServicePortId;

use super::engine::{Engine, Writer};
use super::entry;
use super::installed::Installed;
use super::tables::{ServiceAddress, TableError, Tables};

/// A comparison of all maps, which takes many calls of [`Engine::audit`].
#[derive(Debug, Default)]
pub struct Audit {
    stage: Stage,
    /// How many keys of service entries have been read. It ends a comparison during which entries
    /// were removed: then the kernel may begin again with the first key.
    keys: usize,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Start,
    /// The Service ports whose entries are compared next.
    Services(Vec<Arc<ServicePortId>>),
    /// The last key of the service entries that have an owner.
    Keys(Option<ServiceAddress>),
    Done,
}

impl Audit {
    /// Returns whether all maps have been compared.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl<T: Tables> Engine<T> {
    /// Compares further entries, about `budget` of them, and repairs those that differ. Returns a
    /// description of each.
    ///
    /// A Service port whose entries cannot be written again is compared again by the next audit.
    pub fn audit(&mut self, audit: &mut Audit, budget: usize) -> Result<Vec<String>, TableError> {
        let mut found = Vec::new();
        let mut compared = 0;
        while compared < budget {
            match &mut audit.stage {
                Stage::Start => audit.stage = Stage::Services(self.services.keys().cloned().collect()),
                Stage::Services(queue) => match queue.pop() {
                    Some(id) => {
                        // It may have been removed since the audit began.
                        let Some(installed) = self.services.get(&id) else { continue };
                        compared += self.writer.audit(&id, installed, &mut found)?;
                    }
                    None => audit.stage = Stage::Keys(None),
                },
                Stage::Keys(after) => {
                    let keys = self.writer.tables.service_keys(*after, budget - compared)?;
                    audit.keys += keys.len();
                    compared += keys.len();
                    let capacity = self.writer.capacity.services;
                    audit.stage = match keys.last() {
                        Some(last) if audit.keys <= (capacity.v4 + capacity.v6) as usize => {
                            Stage::Keys(Some(*last))
                        }
                        _ => Stage::Done,
                    };
                    self.writer.remove_added(&keys, &mut found)?;
                }
                Stage::Done => break,
            }
        }
        Ok(found)
    }
}

impl<T: Tables> Writer<T> {
    /// Compares the entries of a Service port, in the order in which they are written. Returns how
    /// many it has compared.
    fn audit(
        &mut self,
        id: &ServicePortId,
        installed: &Installed,
        found: &mut Vec<String>,
    ) -> Result<usize, TableError> {
        let service_id = installed.service_id;
        let mut compared = 1 + installed.entries.len() * 2;
        if let Some(thresholds) = installed.thresholds
            && self.tables.thresholds_of(service_id)? != Some(thresholds)
        {
            found.push(format!("the thresholds of {id}"));
            self.tables.put_thresholds(service_id, thresholds)?;
        }
        for family in IpFamily::BOTH {
            let record = &installed.families[family];
            compared += record.backends.len() + record.source_ranges.len();
            for (&address, backend) in &record.backends {
                let entry = backend.entry(address, service_id);
                if self.tables.backend(family, backend.id)? != Some(entry) {
                    found.push(format!("endpoint {address} of {id}"));
                    self.tables.rewrite_backend(family, backend.id, entry)?;
                }
            }
            for range in &record.ranges {
                let slots = self.tables.read_slots(range.base, range.count())?;
                let mut differ = false;
                for (slot, (backend, other)) in (range.base..).zip(range.backend_ids.iter().zip(slots)) {
                    if *backend != other {
                        differ = true;
                        self.tables.rewrite_slot(slot, *backend)?;
                    }
                }
                // The programs change the cursor.
                if range.in_turn && self.tables.cursor(range.base)?.is_none_or(|next| next >= range.count()) {
                    differ = true;
                    self.tables.put_cursor(range.base, 0)?;
                }
                if differ {
                    found.push(format!("a list of endpoints of {id}"));
                }
                compared += 1;
            }
            for &sources in &record.source_ranges {
                if self.tables.restore_source_range(service_id, sources)? {
                    found.push(format!("source range {sources} of {id}"));
                }
            }
        }
        if let Some(name) = installed.named_port.and_then(|port| entry::service_name(id, port))
            && self.tables.service_name(service_id)? != Some(name)
        {
            found.push(format!("the name of {id}"));
            self.tables.put_service_name(service_id, &name)?;
        }
        for (&address, &value) in &installed.entries {
            if !address.ip.is_unspecified() && self.marks.restore(&mut self.tables, address.ip)? {
                found.push(format!("the flags of address {}", address.ip));
            }
            if self.tables.service(address)? != Some(value) {
                found.push(format!("{address} of {id}"));
                self.tables.put_service(address, value)?;
            }
        }
        Ok(compared)
    }

    /// Removes service entries that this engine has not written.
    fn remove_added(&mut self, keys: &[ServiceAddress], found: &mut Vec<String>) -> Result<(), TableError> {
        for &key in keys.iter().filter(|key| !self.address_owners.contains_key(key)) {
            found.push(format!("{key}, which another program has added"));
            self.tables.remove_service(key)?;
        }
        Ok(())
    }
}
