//! Subvolumes and snapshots of btrfs by ioctl (btrfs-ioctl, linux/btrfs.h).
