"""The minutes that a run is expected to take, from counted work and known GPU rates.

_expert_loads  How many tokens each expert gets, and the rows that are computed for them: a model of the router. Free of torch
_work          What one pass asks of a GPU and of its host: operations, bytes, kernels. Counted from shapes; free of torch
forecast       How long a run will take on GPUs whose rates are known, before anything is loaded: a model, not a measurement
rates          How fast a GPU and its host work, for the model of the cost. Free of torch
"""
