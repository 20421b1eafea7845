"""Train the demo's base model, of Qwen3-VL-MoE's architecture.

_architecture  Build the tiny base and its processor: real Qwen3-VL-MoE classes, small numbers
_corpus        Draw the corpus, scenes and questions, and tokenize it before the training
_fast_forward  Compute a batch of equal images without loops over images and experts
pretraining    Train the tiny base: `python -m vqa_utils.tiny_base.pretraining`, ten GPU minutes
scenes         Draw scenes with four-choice questions
"""
