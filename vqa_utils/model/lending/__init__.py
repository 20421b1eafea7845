"""Load a base once and lend it to processes: blocks of memory behind file descriptors.

attach       Build the base of a fold from what the run's server lends
blocks       Memory that other processes can map, as tensors: a GPU's, or a host's by mmap
fingerprint  Tell whether bytes in memory have changed
lender       Load the base, pack it into blocks, hand them to the driver, exit. A program
"""
