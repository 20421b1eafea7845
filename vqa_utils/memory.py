"""How many bytes a model's parts take on a GPU: weights as they are kept, LoRA, and what is alive while it computes.

Everything is counted from shapes. What autograd saves is counted tensor by tensor for the code in `model`, `experts` and
`train` (fp16 autocast over an fp32 residual stream, checkpointing by layer). Temporaries come and go; their bytes a token
(the factors 28 and 35 of the attention's width) were fitted on five measured peaks and checked on others: tests/bench/README.md.
"""

import math
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.shapes import LAYERS, ModelShape, Shape, group_of, is_matrix

EXPERTS_AT_ONCE = 64  # whose dense 16-bit weights are alive at a time: 576 MiB of the 30B's 1,152 a layer
TEXT_TOKENS = 128  # question, four options and the chat's frame in a long row; more of them cost little
LONG_TEXT_TOKENS = 192  # the longest row that still has to fit where layers are kept for the backward
LONGER_INSTRUCTION = 8  # tokens that `paraphrase`'s longest instruction has more than the usual one, in Qwen's vocabulary
OPTION_TOKENS = 80  # of these, the options and what follows, which each further option order adds
KEPT_POSITIONS = 4  # logits are made at the letter, the two tokens that end the turn, and the one before them
BLOCK, GROUP = 64, 256  # NF4 weights that share a scale, scales that share one of theirs
LORA_BYTES = 18  # a LoRA weight: fp32 4, gradient 4, AdamW's two moments 8, autocast's fp16 copy 2
PAGED_LORA_BYTES = 10  # the same with the moments in host memory
KEPT, WORKING, LOGITS, DENSE = "kept for the backward", "a layer at work", "logits", "dequantised weights"
LORA, EXPERTS = "LoRA and its optimizer", "experts"
Bytes = dict[str, int]


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once."""

    rows: int
    image_tokens: int
    text_tokens: int

    @property
    def tokens(self) -> int:
        return self.rows * (self.image_tokens + self.text_tokens)


def batch_of(shape: ModelShape, config: Config, rows: int, text_tokens: int = TEXT_TOKENS, *, training: bool = False) -> Batch:
    """A batch of images that fill the pixels that they may have, of rows that training may word at more length."""
    longer = LONGER_INSTRUCTION if training and config.paraphrase else 0
    return Batch(rows, math.ceil(config.image_side**2 / shape.pixels_per_token), text_tokens + longer)


def weight_bytes(name: str, shape: Shape, config: Config, element_bytes: int = 0) -> int:
    """A parameter as `load_base` keeps it: NF4, fp32 (norms and router), or what `element_bytes` says.

    Args:
        element_bytes: of what is not packed; on a GPU, two bytes under `use_amp` and four without.
    """
    element_bytes = element_bytes or (2 if config.use_amp else 4)
    count = math.prod(shape)
    if config.quantization == "nf4" and is_matrix(name, shape):
        tensors = shape[0] if len(shape) == 3 else 1  # each expert is a tensor of its own
        return tensors * nf4_bytes(count // tensors, config.use_double_quant)
    return count * (4 if group_of(name) == "norms and router" else element_bytes)


def nf4_bytes(count: int, double_quant: bool) -> int:
    """Packed weights with their scales: 4.127 bits a weight with double quantisation, 4.5 without."""
    blocks = math.ceil(count / BLOCK)
    scales = blocks + 4 * math.ceil(blocks / GROUP) + 4 if double_quant else 4 * blocks
    return math.ceil(count / 2) + scales


def module_of(name: str) -> str:
    """The module that the device map places, of a parameter's name."""
    if name.startswith(f"{LAYERS}."):
        return ".".join(name.split(".")[:4])
    return "model.visual" if name.startswith("model.visual") else name.rpartition(".")[0]


def weights_by_module(shape: ModelShape, config: Config) -> dict[str, Bytes]:
    """Each placed module's weights in bytes by group, LoRA with its gradients and optimizer among them."""
    modules: dict[str, Bytes] = {}
    for name, size in shape.parameters.items():
        groups = modules.setdefault(module_of(name), {})
        groups[group_of(name)] = groups.get(group_of(name), 0) + weight_bytes(name, size, config)
        if lora := lora_weights(name, size, config):
            each = PAGED_LORA_BYTES if config.use_cpu_offload else LORA_BYTES
            scales = 3 * math.prod(size) // BLOCK if config.quantization == "nf4" and config.use_double_quant else 0
            groups[LORA] = groups.get(LORA, 0) + lora * each + scales  # which `lora` keeps dense
    return modules


def lora_weights(name: str, shape: Shape, config: Config) -> int:
    """How many LoRA weights stand beside a matrix: r * (in + out) where it is a target, else 0."""
    is_target = name.startswith(LAYERS) and name.endswith(tuple(f".{target}.weight" for target in config.target_modules))
    return config.lora_r * sum(shape) if is_target else 0


def input_bytes(shape: ModelShape, batch: Batch) -> int:
    """What any decoder layer leaves behind for the backward: its fp32 input, and the routing of its experts."""
    return (4 * shape.hidden + 3 * 8 * shape.experts_per_token) * batch.tokens  # three 64-bit numbers a pair


def saved_bytes(shape: ModelShape, config: Config, batch: Batch) -> int:
    """What autograd saves beside that in a decoder layer that is not computed again, with the mask that sdpa makes."""
    mask = 2 * batch.tokens // batch.rows
    return (_attention_saved(shape, config) + _mlp_saved(shape) + mask) * batch.tokens


def training_bytes(shape: ModelShape, config: Config, batch: Batch, layers: int, kept: int, *, head: bool) -> Bytes:
    """What lives beside the weights while the backward is in the last of `layers` decoder layers, `kept` of them whole."""
    # Of a whole layer the attention's is among what is saved, and the MLP's, which is gone by the attention's backward
    saved = -_mlp_saved(shape) if kept else _attention_saved(shape, config)
    a_token = saved + max(28 * shape.attention_width, _mlp_at_work(shape, 12))
    return {
        KEPT: layers * input_bytes(shape, batch) + kept * saved_bytes(shape, config, batch),
        WORKING: a_token * batch.tokens if layers else 0,
        DENSE: dense_bytes(shape) if layers else 0,
        LOGITS: logits_bytes(shape, batch) if head else 0,
    }


def scoring_bytes(shape: ModelShape, batch: Batch) -> int:
    """What lives beside the weights while a decoder layer goes forward without gradients."""
    stream = 12 * shape.hidden  # the stream, its norm, and the product that is added
    a_token = stream + max(35 * shape.attention_width, _mlp_at_work(shape, 8))
    return a_token * batch.tokens + dense_bytes(shape)


def loading_bytes(shape: ModelShape) -> int:
    """The largest stack of experts on its way to 4 bits: in 16 bits, as the checkpoint has it and transposed."""
    return 2 * shape.experts * 2 * 2 * shape.mlp_width * shape.hidden


def dense_bytes(shape: ModelShape) -> int:
    """The largest weights that are dense in 16 bits at a time: a chunk of experts, or one matrix."""
    if shape.experts:
        return 2 * min(EXPERTS_AT_ONCE, shape.experts) * 3 * shape.mlp_width * shape.hidden
    return 2 * shape.mlp_width * shape.hidden


def logits_bytes(shape: ModelShape, batch: Batch) -> int:
    """Logits in fp16, in fp32, their log-softmax and its gradient, at the kept positions."""
    return batch.rows * KEPT_POSITIONS * shape.vocabulary * (2 + 4 + 4 + 4)


def vision_bytes(shape: ModelShape, batch: Batch) -> int:
    """The vision tower's forward: pixels, the stream, and one block's attention in fp32 or MLP in fp16."""
    patches = batch.rows * batch.image_tokens * shape.pixels_per_token // shape.patch_px**2
    pixels = 3 * 2 * shape.patch_px**2 * 4
    return patches * (pixels + 8 * shape.vision_hidden + max(36 * shape.vision_hidden, 6 * shape.vision_mlp_width))


def _attention_saved(shape: ModelShape, config: Config) -> int:
    hidden, queries, keys = shape.hidden, shape.attention_width, shape.key_value_width
    dropped = 3 if config.lora_dropout else 2  # LoRA's fp16 input, with the mask where there is dropout
    # the norm's fp32 input; q, k and v's one input and their one product; sdpa's q, repeated k and v, and output; o's input
    return 4 * hidden + dropped * hidden + 2 * (queries + 2 * keys) + (2 + 2 + 2 + 2) * queries + dropped * queries


def _mlp_saved(shape: ModelShape) -> int:
    """Bytes a token: the experts' fp16 input and the router's probabilities; a dense MLP's fp32 and fp16 inputs, gate and up."""
    return 2 * shape.hidden + 4 * shape.experts if shape.experts else 4 * shape.hidden + 6 * shape.mlp_width


def _mlp_at_work(shape: ModelShape, dense: int) -> int:
    """Bytes a token of the MLP at work: `dense` a column, or the experts' pairs in fp16, twice; and two residual streams."""
    return (4 * shape.experts_per_token + 8) * shape.hidden + (0 if shape.experts else dense * shape.mlp_width)
