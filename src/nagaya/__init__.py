"""Nagaya: many machines on one host."""

# General layout
#
#   spec, units, errors, paths   what everybody shares
#   abi      declarations of kernels and standards
#   hw, kvm  our own VMM
#   engines  one way each to run a machine: uml, kvm, qemu
#   plane    the Python half of the data path; nagaya._core is the Rust half
#   images   what machines boot from; kernels
#   daemon   state, API, supervision;  sdk  the client;  cli  the command line

__version__ = "0.1.0"
