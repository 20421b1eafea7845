"""How many bytes a model's parts take on a GPU: weights as they are kept, LoRA, and what is alive while it computes.

Everything is counted from shapes, tensor by tensor for the code in `layer`, `experts` and `train` (fp16 products over an fp32
residual stream, checkpointing by layer), and checked on measured peaks: tests/bench/README.md. Of a dense layer, which is
transformers' own, the temporaries (the factors 28 and 35 of the attention's width) were fitted on such peaks.
"""

import math
from dataclasses import dataclass

from vqa_utils.config import Config
from vqa_utils.nf4_format import BLOCK, GROUP
from vqa_utils.planning.shapes import LAYERS, ModelShape, Shape, group_of, is_matrix

PADDED = 1.25  # rows of a layer's experts for each that is needed: 1.20 was recorded at 16 rows a pass, a T4's cut pads less
EXPERTS_AT_ONCE = (
    64  # whose dense 16-bit weights are alive at a time: 576 MiB of the 30B's 1,152 a layer
)
TEXT_TOKENS = (
    128  # question, four options and the chat's frame in a long row; more of them cost little
)
LONG_TEXT_TOKENS = (
    192  # the longest row that still has to fit where layers are kept for the backward
)
LONGER_INSTRUCTION = 8  # tokens that `paraphrase`'s longest instruction has more than the usual one, in Qwen's vocabulary
OPTION_TOKENS = 80  # of these, the options and what follows, which each further option order adds
KEPT_POSITIONS = (
    4  # logits are made at the letter, the two tokens that end the turn, and the one before them
)
LORA_BYTES = 18  # a LoRA weight: fp32 4, gradient 4, AdamW's two moments 8, autocast's fp16 copy 2
PAGED_LORA_BYTES = 10  # the same with the moments in host memory
KEPT, WORKING, LOGITS, DENSE = (
    "kept for the backward",
    "a layer at work",
    "logits",
    "dequantised weights",
)
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


def batch_of(
    shape: ModelShape,
    config: Config,
    rows: int,
    text_tokens: int = TEXT_TOKENS,
    *,
    training: bool = False,
) -> Batch:
    """A batch of images that fill the pixels that they may have, of rows that training may word at more length."""
    longer = LONGER_INSTRUCTION if training and config.paraphrase else 0
    return Batch(
        rows, math.ceil(config.image_side**2 / shape.pixels_per_token), text_tokens + longer
    )


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
            scales = (
                3 * math.prod(size) // BLOCK
                if config.quantization == "nf4" and config.use_double_quant
                else 0
            )
            groups[LORA] = groups.get(LORA, 0) + lora * each + scales  # which `lora` keeps dense
    return modules


def lora_weights(name: str, shape: Shape, config: Config) -> int:
    """How many LoRA weights stand beside a matrix: r * (in + out) where it is a target, else 0."""
    is_target = name.startswith(LAYERS) and name.endswith(
        tuple(f".{target}.weight" for target in config.target_modules)
    )
    return config.lora_r * sum(shape) if is_target else 0


def input_bytes(shape: ModelShape, batch: Batch) -> int:
    """What any decoder layer leaves behind for the backward: its fp32 input, and the routing of its experts."""
    a_pair = 4 + 8 + 3 * 8  # its weight, its expert, and three 64-bit places
    return (4 * shape.hidden + a_pair * shape.experts_per_token) * batch.tokens


def saved_bytes(shape: ModelShape, config: Config, batch: Batch) -> int:
    """What is kept beside that of a decoder layer that is not computed again."""
    return (_attention_saved(shape, config) + _mlp_saved(shape)) * batch.tokens


def training_bytes(
    shape: ModelShape, config: Config, batch: Batch, layers: int, kept: int, *, head: bool
) -> Bytes:
    """What lives beside the weights while the backward is in the last of `layers` decoder layers, `kept` of them whole."""
    if (
        shape.experts
    ):  # a whole layer's is among what is saved; both streams' gradients, in two types
        at_work = 12 * shape.hidden + max(
            12 * shape.attention_width, _experts_at_work(shape, training=True)
        )
        a_token = at_work + (0 if kept else _attention_saved(shape, config))
    else:  # of a whole layer the attention's is among what is saved, and the MLP's, which is gone by the attention's backward
        saved = -_mlp_saved(shape) if kept else _attention_saved(shape, config)
        a_token = saved + max(28 * shape.attention_width, 8 * shape.hidden + 12 * shape.mlp_width)
    return {
        KEPT: layers * input_bytes(shape, batch) + kept * saved_bytes(shape, config, batch),
        WORKING: int(a_token) * batch.tokens if layers else 0,
        DENSE: dense_bytes(shape) if layers else 0,
        LOGITS: logits_bytes(shape, batch) if head else 0,
    }


def scoring_bytes(shape: ModelShape, batch: Batch, *, first: bool) -> int:
    """What lives beside the weights while a decoder layer goes forward without gradients.

    Args:
        first: whether the images and the embeddings are on this GPU, which the forward holds to its end.
    """
    mask = (
        3 * batch.tokens // batch.rows
    )  # of several option orders, as booleans and as what is added to the scores
    if not shape.experts:
        a_token = 12 * shape.hidden + max(
            35 * shape.attention_width, 8 * shape.hidden + 8 * shape.mlp_width
        )
        return int(mask + a_token) * batch.tokens + dense_bytes(shape)
    # The stream before the layer, between its halves and behind it, and the norm in 16 bits. On the first GPU also embeddings as
    # made and moved, and the stream before the tower's features were last added to it
    streams = (14 + 12 * first) * shape.hidden
    a_token = (
        streams + mask + max(10 * shape.attention_width, _experts_at_work(shape, training=False))
    )
    return int(a_token) * batch.tokens + dense_bytes(shape) + first * _image_bytes(shape, batch)


def _image_bytes(shape: ModelShape, batch: Batch) -> int:
    """Pixels, the tower's stream and its features in fp32, and those for the DeepStack in 16 bits."""
    a_patch = _pixel_bytes(shape) + 4 * shape.vision_hidden
    features = (4 + 2 * shape.deepstack_layers) * shape.hidden
    return _patches(shape, batch) * a_patch + batch.rows * batch.image_tokens * features


def _patches(shape: ModelShape, batch: Batch) -> int:
    return batch.rows * batch.image_tokens * shape.pixels_per_token // shape.patch_px**2


def _pixel_bytes(shape: ModelShape) -> int:
    """Of a patch: three colours of two frames in fp32."""
    return 3 * 2 * shape.patch_px**2 * 4


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
    at_work = max(36 * shape.vision_hidden, 6 * shape.vision_mlp_width)
    return _patches(shape, batch) * (_pixel_bytes(shape) + 8 * shape.vision_hidden + at_work)


def _attention_saved(shape: ModelShape, config: Config) -> int:
    hidden, queries, keys = shape.hidden, shape.attention_width, shape.key_value_width
    product = 2 * (queries + 2 * keys)  # q, k and v's; and sdpa's q, repeated k and v, and output
    dropped = (
        2 * queries if config.lora_dropout else 0
    )  # the output with some of it dropped, for o's LoRA
    # the norm's fp32 input, of the experts' norm here and of the attention's in a dense layer; q, k and v's input
    own = 2 * hidden if shape.experts else 0  # the experts' input
    return 4 * hidden + 2 * hidden + own + product + 8 * queries + dropped


def _mlp_saved(shape: ModelShape) -> int:
    """Bytes a token of a dense MLP: fp32 and fp16 inputs, gate and up."""
    return 0 if shape.experts else 4 * shape.hidden + 6 * shape.mlp_width


def _experts_at_work(shape: ModelShape, *, training: bool) -> float:
    """Bytes a token: rows in fp16 for each of its experts (in training their gradients too), gates and values of a group.

    Nearly all rows are of the first group of experts, which are the busiest.
    """
    rows = 4 * shape.hidden if training else 2 * shape.hidden
    return PADDED * shape.experts_per_token * (rows + 6 * shape.mlp_width)
