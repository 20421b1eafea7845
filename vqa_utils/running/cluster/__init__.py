"""Run the notebooks of folds on several machines, through Ray.

options      Add the options for a run on several machines. Standard library only
opening      Connect to a cluster where the command asks for one; without the package, say so
ray_cluster  Look at a cluster's nodes: places for folds, GPUs, problems
node_process Run a notebook on a node: the driver's side
_on_node     Run a notebook on a node: the node's side
_changes     Carry changed files to a machine without shared storage
"""
