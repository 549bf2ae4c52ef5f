//! The new mount interface: open_tree(2), move_mount(2), mount_setattr(2) with id mapping.
