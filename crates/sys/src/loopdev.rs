//! Loop devices by ioctl (loop(4), linux/loop.h).
