//! Containers by name. A name is taken from the moment its creation begins until its deletion is complete.

use super::Container;
use crate::error::Error;
use crate::id::ContainerId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Containers of one pod at a time; kubelet's limit for a whole node is 110 pods.
const MAX_CONTAINERS: usize = 128;

#[derive(Debug, Default)]
pub struct Table {
    /// None: being created.
    containers: Mutex<HashMap<ContainerId, Option<Arc<Container>>>>,
}

/// A taken name. Dropping it without `fill` frees the name.
#[derive(Debug)]
pub struct Reservation<'a> {
    table: &'a Table,
    id: Option<ContainerId>,
}

impl Table {
    pub fn reserve(&self, id: &ContainerId) -> Result<Reservation<'_>, Error> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return Err(Error::ContainerExists(id.clone()));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(Error::Limit { what: "containers", limit: MAX_CONTAINERS });
        }
        containers.insert(id.clone(), None);
        Ok(Reservation { table: self, id: Some(id.clone()) })
    }

    pub fn get(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        self.containers().get(id).cloned().flatten().ok_or_else(|| Error::NoContainer(id.clone()))
    }

    pub fn remove(&self, id: &ContainerId) {
        self.containers().remove(id);
    }

    pub fn all(&self) -> Vec<Arc<Container>> {
        self.containers().values().flatten().cloned().collect()
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Option<Arc<Container>>>> {
        self.containers.lock().expect("no holder panics")
    }
}

impl Reservation<'_> {
    pub fn fill(mut self, container: Arc<Container>) {
        if let Some(id) = self.id.take() {
            self.table.containers().insert(id, Some(container));
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.table.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_while_its_container_is_being_created() {
        let table = Table::default();
        let id = ContainerId::parse("web").unwrap();
        let reservation = table.reserve(&id).unwrap();
        assert!(matches!(table.reserve(&id), Err(Error::ContainerExists(_))));
        assert!(matches!(table.get(&id), Err(Error::NoContainer(_))));
        drop(reservation);
        assert!(table.reserve(&id).is_ok());
    }

    #[test]
    fn the_number_of_containers_has_a_limit() {
        let table = Table::default();
        let ids: Vec<_> = (0..=MAX_CONTAINERS).map(|n| ContainerId::parse(&format!("c{n}")).unwrap()).collect();
        let held: Vec<_> = ids[..MAX_CONTAINERS].iter().map(|id| table.reserve(id).unwrap()).collect();
        assert!(matches!(table.reserve(&ids[MAX_CONTAINERS]), Err(Error::Limit { .. })));
        drop(held);
    }
}
