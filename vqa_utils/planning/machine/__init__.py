"""Know the machine: its GPUs, its own memory, and if a run can do on it.

check  Refuse a run without the machine or the model for it
disk   Count what a run writes, tell of a full disk, and leave nothing half-written on it
gpus   Find the GPUs, and how much of each a run may take
host   Measure the machine's own memory, and count what a run takes of it
"""
