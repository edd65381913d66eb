"""The PROXY protocol: its headers, reading one from a socket, and which peers may send one."""
