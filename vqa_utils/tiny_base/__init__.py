"""The demo's base model, of Qwen3-VL-MoE's architecture, and its training.

_architecture  The tiny base's shape and its processor: real Qwen3-VL-MoE classes, small numbers
_corpus        Drawn scenes and their questions, tokenized before the training
_fast_forward  The forward for a batch of equal images, without loops over images and experts
pretraining    Train the tiny base: `python -m vqa_utils.tiny_base.pretraining`, ten minutes on a GPU
scenes         Drawn scenes with four-choice questions
"""
