//! Registers under every access, in every state.
