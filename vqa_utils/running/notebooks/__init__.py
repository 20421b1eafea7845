"""Execute notebooks: one, as often as it takes, or those of several folds at a time.

attempts        Execute a step again in a fresh kernel: with less memory, or once if it died
execution       Execute one notebook through papermill, in this process or in another one
fork_server     Fork kernels that share the memory of their imports, on a CPU. A program
forked_kernels  Start kernels as forks of that program
kernels         Start kernels before their notebooks, which find there what they import
processes       Keep a process for notebooks, with its share of the machine
progress        Watch notebooks at work: name one that makes no progress, and a full disk
side_by_side    Run steps of folds side by side, each in the next free process
"""
