//! A Debian node with containerd and KVM, booted by QEMU.
