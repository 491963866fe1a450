//! How much containers may use before they have to wait for more memory. Pure.

/// What the kernel says of the guest's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub free: u64,
}

/// Stays free: for the kernel's own watermarks (up to 11 MiB), for what no container is charged for, and for the page structures
/// of memory that comes, 2 MiB for each 128.
const RESERVE: u64 = 24 << 20;

/// The kernel keeps this part of the first memory from those who could use what came later.
const LATER: u64 = 64;

/// Containers can always run a little.
const LEAST: u64 = 8 << 20;

impl Memory {
    /// From `/proc/meminfo`, which counts in KiB.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { total: field("MemTotal")?, free: field("MemFree")? })
    }

    /// Where containers that use `used` bytes now are to be slowed down.
    pub fn brake(self, used: u64) -> u64 {
        let usable = self.free.saturating_add(used);
        usable.saturating_sub(RESERVE + self.total / LATER).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_kernels_numbers_are_found() {
        let text = "MemTotal:         102400 kB\nMemFree:           51200 kB\nMemAvailable:   60000 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total: 100 * MIB, free: 50 * MIB }));
        assert_eq!(Memory::parse("MemTotal: 1 kB\n"), None);
        assert_eq!(Memory::parse("MemTotal: x kB\nMemFree: 1 kB\n"), None);
    }

    #[test]
    fn what_containers_may_use_does_not_depend_on_what_they_use() {
        let memory = Memory { total: 128 * MIB, free: 80 * MIB };
        assert_eq!(memory.brake(0), 54 * MIB);
        assert_eq!(Memory { free: 40 * MIB, ..memory }.brake(40 * MIB), 54 * MIB);
    }

    #[test]
    fn there_is_always_a_little() {
        assert_eq!(Memory { total: 128 * MIB, free: 0 }.brake(0), 8 * MIB);
        assert_eq!(Memory { total: u64::MAX, free: u64::MAX }.brake(u64::MAX), u64::MAX - (24 * MIB + u64::MAX / 64));
    }
}
