"""Share one base and the GPUs between a run's folds. Free of torch.

client       Ask the run's server from a fold's process: for the base, and for turns on the GPUs
gpu_memory   A GPU's memory that other processes can map: CUDA's virtual memory, without torch
lender       Start the process that loads the base, and receive what it lends
lent         Describe a base in memory that other processes map: its blocks, its tensors
seats        Let so many folds be at work at a time; fewer when memory runs out
server       Serve the folds of a run from the driver, which keeps the base's memory alive
shared_base  Load a run's base once, and lend it to its folds: the driver's side
turns        Grant each GPU to one fold at a time, first come, first served
"""
