//! What an instance may take of this machine's memory: a component may have many memories and tables, and so it is what
//! all of them have together that is bounded.

use wasmtime::ResourceLimiter;

/// Entries of all tables of an instance.
const ENTRIES_MAX: usize = 100_000;

/// How many core instances, memories and tables make an instance of a component: its module, and adapters around it.
const PARTS_MAX: usize = 64;

/// The room of one instance.
pub(super) struct Room {
    memory: Share,
    entries: Share,
}

struct Share {
    used: usize,
    most: usize,
    /// Whether more was asked for since it was last looked at.
    asked_for_more: bool,
}

impl Room {
    pub(super) fn new(memory: usize) -> Self {
        let share = |most| Share { used: 0, most, asked_for_more: false };
        Self { memory: share(memory), entries: share(ENTRIES_MAX) }
    }

    /// A call begins.
    pub(super) fn look_away(&mut self) {
        self.memory.asked_for_more = false;
    }

    /// The bytes that there were, if more were asked for since the call began.
    pub(super) fn exceeded(&self) -> Option<usize> {
        self.memory.asked_for_more.then_some(self.memory.most)
    }
}

impl Share {
    /// Whether one of its parts may grow so far. What is never given back is counted for as long as the instance lives.
    fn grows(&mut self, current: usize, desired: usize) -> bool {
        let used = self.used.saturating_sub(current).saturating_add(desired);
        if used > self.most {
            self.asked_for_more = true;
            return false;
        }
        self.used = used;
        true
    }
}

/// What the part itself declares as its most is for it to keep.
fn declared(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_none_or(|maximum| desired <= maximum)
}

impl ResourceLimiter for Room {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(declared(desired, maximum) && self.memory.grows(current, desired))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(declared(desired, maximum) && self.entries.grows(current, desired))
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::{Engine, Instance, Module, Store};

    use super::*;

    /// Modules whose memories (section 5), or tables of functions (section 4), have 2 MiB or 2,000 entries each.
    const ONE_MEMORY: &[u8] = b"\0asm\x01\0\0\0\x05\x03\x01\0\x20";
    const TWO_MEMORIES: &[u8] = b"\0asm\x01\0\0\0\x05\x05\x02\0\x20\0\x20";
    const ONE_TABLE: &[u8] = b"\0asm\x01\0\0\0\x04\x05\x01\x70\0\xd0\x0f";

    fn starts(modules: &[&[u8]], memory: usize) -> Result<(), String> {
        let engine = Engine::default();
        let mut store = Store::new(&engine, Room::new(memory));
        store.limiter(|room| room);
        for module in modules {
            let module = Module::new(&engine, module).unwrap();
            Instance::new(&mut store, &module, &[]).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }

    #[test]
    fn all_memories_of_an_instance_share_its_room() {
        let room = 3 << 20;
        starts(&[ONE_MEMORY], room).unwrap();
        starts(&[TWO_MEMORIES], 4 << 20).unwrap();
        starts(&[TWO_MEMORIES], room).unwrap_err();
        starts(&[ONE_MEMORY, ONE_MEMORY], room).unwrap_err();
    }

    #[test]
    fn all_tables_of_an_instance_share_their_entries() {
        starts(&[ONE_TABLE; ENTRIES_MAX / 2000], 0).unwrap();
        starts(&[ONE_TABLE; ENTRIES_MAX / 2000 + 1], 0).unwrap_err();
    }

    #[test]
    fn what_grows_is_counted_once() {
        let mut room = Room::new(100);
        assert!(room.memory_growing(0, 40, None).unwrap() && room.memory_growing(40, 60, None).unwrap());
        assert!(room.memory_growing(0, 40, Some(40)).unwrap());
        assert!(!room.memory_growing(40, 41, None).unwrap());
        assert_eq!(room.exceeded(), Some(100));
        room.look_away();
        assert!(!room.memory_growing(0, 1, Some(0)).unwrap());
        assert_eq!(room.exceeded(), None, "it broke its own word only");
    }
}
