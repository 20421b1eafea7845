"""Expect a run's minutes: from counted work and known GPU rates, then from its own pace.

Free of torch.

_expert_loads    Model the router: how many tokens each expert gets, and the slots computed for them
_kernels         Cost table of each part's kernels (the CUDA sources are in ops/)
_vision_kernels  Cost table of the vision tower's kernels
_work            Count the work of one pass on a GPU: its kernels summed by phase, and launches
folds_at_once    Choose how many folds share the base: those with the shortest expected run
forecast         Expect the minutes of an epoch and of a whole run
pace             Expect what is left of a run by the seconds that were measured in it
rates            State how fast a GPU and its host are, and how long they take for counted work
"""
