"""Train the tiny base from scratch on drawn scenes: `python -m vqa_utils.tiny_base.pretraining` (about ten minutes on one GPU).

The model is transformers' own class; the loss is the cross-entropy of the answer's letter at the last position. The
GPU is kept busy by making everything that does not learn beforehand: scenes, token ids and positions lie on the GPU.
"""

import argparse
import itertools
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    PreTrainedModel,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    get_cosine_schedule_with_warmup,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_outputs import ModelOutput
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen

from vqa_utils.prompts import INSTRUCTION, LETTERS, chat, question_text
from vqa_utils.tiny_base._architecture import PATCH_PX, tiny_config, train_processor
from vqa_utils.tiny_base.scenes import SIDE_PX, ask, draw_scene

OUT = Path(__file__).parent / "model"
GRID = SIDE_PX // PATCH_PX  # patches along a side
QUESTIONS = 4  # a scene
HELD_OUT = 2_000  # scenes


def dense_experts(
    module: torch.nn.Module, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """All experts for every token, weighted by the router: eight small experts are faster so than sorted.

    x: [T, H]; the router's choice is [T, k]; returns [T, H].
    """
    gate, up = torch.einsum("th,eoh->eto", x, module.gate_up_proj).chunk(2, -1)
    y = torch.einsum("eti,ehi->eth", module.act_fn(gate) * up, module.down_proj)
    share = torch.zeros(len(x), module.num_experts, device=x.device, dtype=y.dtype)
    return torch.einsum("eth,te->th", y, share.scatter(1, top_k_index, top_k_weights.to(y.dtype)))


def equal_images_attention(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, ...],
    **kwargs: Any,
) -> torch.Tensor:
    """The vision tower's attention for images of one size: a batched call in place of a loop over the images."""
    q, k, v = (
        self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
    )  # [N, heads, d]
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.to(v.dtype).unflatten(0, (-1, GRID * GRID)).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, patches, d]
    return self.proj(out.transpose(1, 2).flatten(2).flatten(0, 1))


def make_examples(
    processor: Qwen3VLProcessor, seed: int
) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """One scene, the token ids of its questions up to the answer, and the answers' token ids."""
    pixels, items = draw_scene(seed)
    rng = random.Random(seed)
    rows = [ask(items, rng) for _ in range(QUESTIONS)]
    texts = processor.apply_chat_template(
        [chat(row, None) for row in rows], tokenize=False, add_generation_prompt=True
    )
    texts = [text.replace("<|image_pad|>", "<|image_pad|>" * (GRID // 2) ** 2) for text in texts]
    letters = processor.tokenizer.convert_tokens_to_ids([row["answer"] for row in rows])
    return pixels, processor.tokenizer(texts)["input_ids"], letters


def make_corpus(processor: Qwen3VLProcessor, scenes: int, device: str) -> dict[str, torch.Tensor]:
    """Tensors by name: pixels uint8 [S, 64, 64, 3], left-padded ids int16 [S, Q, L], letters [S, Q]."""
    with ProcessPoolExecutor() as pool:
        made = list(
            pool.map(make_examples, itertools.repeat(processor), range(scenes), chunksize=500)
        )
    length = max(len(ids) for _, questions, _ in made for ids in questions)
    pad = processor.tokenizer.pad_token_id
    ids = np.full((scenes, QUESTIONS, length), pad, np.int16)
    for i, (_, questions, _) in enumerate(made):
        for j, question in enumerate(questions):
            ids[i, j, -len(question) :] = question
    pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in made]))
    letters = torch.tensor([letters for _, _, letters in made])
    return {
        "pixels": pixels.to(device),
        "ids": torch.from_numpy(ids).to(device),
        "letters": letters.to(device),
    }


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 64, 64, 3] -> what Qwen2VLImageProcessor makes of it, [B * 64, 3 * 2 * 8 * 8]."""
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    x = x.reshape(len(x), 3, GRID // 2, 2, PATCH_PX, GRID // 2, 2, PATCH_PX)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*[-1] * 6, 2, -1, -1)
    return x.reshape(len(pixels) * GRID * GRID, -1)


def rope_positions(ids: torch.Tensor, pad: int, image: int) -> torch.Tensor:
    """Multimodal positions [3, B, L] of left-padded rows that hold one image of one size each, without a loop."""
    is_image, side = ids == image, GRID // 2
    index = (ids != pad).long().cumsum(1) - 1
    first = torch.where(is_image, index, index.shape[1]).min(1, keepdim=True).values
    after = torch.where(index >= first + side * side, index - side * side + side, index)
    cell = (index - first).clamp(0, side * side - 1)
    grid = torch.stack([first + 0 * cell, first + cell // side, first + cell % side])
    return torch.where(is_image, grid, after.clamp(min=0))


def forward(
    model: PreTrainedModel, pixels: torch.Tensor, ids: torch.Tensor, pad: int
) -> ModelOutput:
    """The model's output with logits [B, 1, V] at the last position.

    The images go to the vision tower as one clip of B frames, which it treats alike and computes without a loop.
    """
    return model(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        position_ids=rope_positions(ids, pad, model.config.image_token_id),
        pixel_values=patches(pixels),
        image_grid_thw=torch.tensor([[len(pixels), GRID, GRID]], device=ids.device),
        logits_to_keep=1,
        output_router_logits=True,
    )


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    corpus: dict[str, torch.Tensor],
    scenes: slice,
    pad: int,
    tokens: torch.Tensor,
) -> float:
    """The share of questions about `scenes` whose most probable letter is the answer's."""
    hits = []
    for question in range(QUESTIONS):
        ids = corpus["ids"][scenes, question].long()
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = forward(model, corpus["pixels"][scenes], ids, pad).logits[:, -1]
        hits.append(tokens[logits[:, tokens].argmax(-1)] == corpus["letters"][scenes, question])
    return torch.cat(hits).float().mean().item()


def clip_and_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> bool:
    """One update with the gradient norm clipped at 1; False, and no update, where the norm is not finite."""
    finite = bool(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite())
    if finite:
        optimizer.step()
    else:
        bad = [
            name
            for name, p in model.named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        print(
            f"skipped a step: gradients not finite in {len(bad)} tensors, such as {bad[:2]} and {bad[-2:]}",
            flush=True,
        )
    optimizer.zero_grad()
    return finite


def train(args: argparse.Namespace) -> None:
    """Make the corpus, train, and write the model, its processor and `training.json` into `OUT`."""
    start, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    texts = [question_text(ask(draw_scene(seed)[1], rng)) for seed in range(20_000)]
    processor = train_processor(
        [f"{INSTRUCTION}\nsystem\nuser\nassistant\n{text}" for text in texts]
    )
    corpus = make_corpus(processor, args.scenes, device)
    pad = processor.tokenizer.pad_token_id
    tokens = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(LETTERS)), device=device)
    print(
        f"corpus: {args.scenes} scenes in {time.time() - start:.0f} s, {corpus['ids'].shape[2]} tokens",
        flush=True,
    )

    ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
    qwen.Qwen3VLMoeVisionAttention.forward = equal_images_attention
    model = Qwen3VLMoeForConditionalGeneration(tiny_config(processor.tokenizer)).to(device)
    model.set_experts_implementation("dense")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(300, args.steps // 10), args.steps)
    skipped = 0
    held_out = slice(0, min(HELD_OUT, args.scenes // 10))
    for step in range(1, args.steps + 1):
        scene = torch.randint(held_out.stop, args.scenes, (args.batch,), device=device)
        question = torch.randint(QUESTIONS, (args.batch,), device=device)
        with torch.autocast(device, torch.bfloat16):
            out = forward(
                model, corpus["pixels"][scene], corpus["ids"][scene, question].long(), pad
            )
        loss = F.cross_entropy(out.logits[:, -1].float(), corpus["letters"][scene, question])
        (loss + model.config.text_config.router_aux_loss_coef * out.aux_loss).backward()
        skipped += not clip_and_step(model, optimizer)
        schedule.step()
        if step % 500 == 0 or step == args.steps:
            score = accuracy(model, corpus, held_out, pad, tokens)
            print(
                f"step {step}: loss {loss:.3f}, held out {score:.4f}, {time.time() - start:.0f} s",
                flush=True,
            )
        if skipped > 50:
            raise FloatingPointError(
                f"step {step}: {skipped} steps had gradients that are not finite; lower the rate"
            )

    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    processor.save_pretrained(args.out)
    record = {key: value for key, value in vars(args).items() if key != "out"}
    record |= {
        "held_out_accuracy": round(score, 4),
        "skipped_steps": skipped,
        "seconds": round(time.time() - start),
        "torch": torch.__version__,
    }
    record["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--scenes", type=int, default=200_000, help="drawn scenes, four questions each"
    )
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
