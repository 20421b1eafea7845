"""Report runs to trackers; off by default.

trackers  Report to TensorBoard, trackio, Weights & Biases, MLflow
"""
