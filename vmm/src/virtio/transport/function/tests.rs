//! A device behind its registers.
