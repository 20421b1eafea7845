"""The libraries that are torch, or bring it."""

TORCH = {
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "qwen_vl_utils",
}
