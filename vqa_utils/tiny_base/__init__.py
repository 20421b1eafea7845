"""The demo's base model, of Qwen3-VL-MoE's architecture, and how it was trained.

_architecture  The tiny base's shape and its processor: real Qwen3-VL-MoE classes with small numbers
pretraining    Train the tiny base from scratch on drawn scenes: `python -m vqa_utils.tiny_base.pretraining` (about ten minutes on one GPU)
scenes         Drawn scenes with four-choice questions: what the tiny base model learned from
"""
