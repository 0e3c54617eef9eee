//! Edits of mirrors.

use ctl::api::{Mirror, MirrorKind};

use super::{Desired, EditError};

impl Desired {
    /// Adds a mirror, or changes the ways of one. `known`: whether there are ports of the names of its source and target.
    ///
    /// # Errors
    /// When its source or target is not there, or they are the same port.
    pub fn add_mirror(&mut self, mirror: Mirror, known: (bool, bool)) -> Result<(), EditError> {
        let missing = |name: &str| EditError::NotFound {
            what: "port",
            name: name.to_owned(),
            hint: "'swctl port ls' lists them".into(),
        };
        match mirror.kind {
            MirrorKind::Port if mirror.from == mirror.to => return Err(EditError::MirrorsItself(mirror.to)),
            MirrorKind::Port if !known.0 => return Err(missing(&mirror.from)),
            MirrorKind::Port => {}
            MirrorKind::Network => _ = self.network(&mirror.from)?,
        }
        if !known.1 {
            return Err(missing(&mirror.to));
        }
        self.mirrors.retain(|m| !m.is(mirror.kind, &mirror.from, &mirror.to));
        self.mirrors.push(mirror);
        Ok(())
    }

    /// Removes a mirror.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_mirror(&mut self, kind: MirrorKind, from: &str, to: &str) -> Result<(), EditError> {
        let before = self.mirrors.len();
        self.mirrors.retain(|m| !m.is(kind, from, to));
        if self.mirrors.len() < before {
            return Ok(());
        }
        Err(EditError::NotFound {
            what: "mirror",
            name: format!("{from} to {to}"),
            hint: "'swctl mirror ls' lists them".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::api::Ways;

    #[test]
    fn one_from_here_to_there_and_of_things_that_exist() {
        let mut desired = Desired::default();
        let mirror =
            |to: &str, ways| Mirror { kind: MirrorKind::Port, from: "a".into(), to: to.into(), ways };
        desired.add_mirror(mirror("b", Ways::Both), (true, true)).unwrap();
        desired.add_mirror(mirror("c", Ways::Out), (true, true)).unwrap();
        desired.add_mirror(mirror("b", Ways::In), (true, true)).unwrap();
        assert_eq!(desired.mirrors, [mirror("c", Ways::Out), mirror("b", Ways::In)]);
        for (wrong, known) in [("a", (true, true)), ("b", (false, true)), ("b", (true, false))] {
            assert!(desired.add_mirror(mirror(wrong, Ways::In), known).is_err(), "{wrong} {known:?}");
        }
        let network = Mirror { kind: MirrorKind::Network, ..mirror("b", Ways::In) };
        assert!(desired.add_mirror(network, (true, true)).is_err(), "there is no network a");
        desired.remove_mirror(MirrorKind::Port, "a", "c").unwrap();
        assert!(desired.remove_mirror(MirrorKind::Port, "a", "c").is_err());
        assert!(desired.remove_mirror(MirrorKind::Network, "a", "b").is_err());
    }
}
