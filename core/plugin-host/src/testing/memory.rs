//! What is in the memory of the components that run in this process.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
};

/// From how many bytes on a mapping that can't be used is what the engine keeps free behind a component's memory.
const RESERVED: u64 = 1 << 30;

/// Whether the memory of a component, of any test of this process, has these bytes in it.
///
/// # Panics
///
/// Where the process can't look into its own memory.
#[must_use]
pub fn guests_hold(bytes: &[u8]) -> bool {
    let memory = File::open("/proc/self/mem").unwrap_or_else(|error| panic!("/proc/self/mem: {error}"));
    guests().iter().any(|guest| holds(&memory, guest, bytes))
}

/// The components' memories: pieces that can be read and written, one after the other, with much behind them that can't.
fn guests() -> Vec<Range<u64>> {
    let maps =
        fs::read_to_string("/proc/self/maps").unwrap_or_else(|error| panic!("/proc/self/maps: {error}"));
    let (mut guests, mut usable) = (Vec::new(), 0..0);
    for (mapping, permissions) in maps.lines().filter_map(mapping) {
        let follows = usable.end == mapping.start;
        match permissions {
            "rw-p" if follows => usable.end = mapping.end,
            "rw-p" => usable = mapping,
            "---p" if follows && mapping.end - mapping.start >= RESERVED => guests.push(usable.clone()),
            _ => {}
        }
    }
    guests
}

/// A line of proc_pid_maps(5): where it is, and what may be done there.
fn mapping(line: &str) -> Option<(Range<u64>, &str)> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?..number(end)?, words.next()?))
}

/// A memory that vanishes while it is read holds nothing.
fn holds(memory: &File, guest: &Range<u64>, bytes: &[u8]) -> bool {
    let mut content = vec![0; usize::try_from(guest.end - guest.start).unwrap_or_default()];
    memory.read_exact_at(&mut content, guest.start).is_ok()
        && content.windows(bytes.len()).any(|window| window == bytes)
}
