"""Train the tiny base from scratch on drawn scenes, in about ten minutes on one GPU.

    python -m vqa_utils.tiny_base.pretraining

The model is transformers' own class; the loss is the cross-entropy of the answer's letter at the
last position. To keep the GPU busy, everything that does not learn is made beforehand: pictures and
token ids of all scenes lie on the GPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import (
    PreTrainedModel,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    get_cosine_schedule_with_warmup,
)

from vqa_utils.prompts import LETTERS
from vqa_utils.tiny_base._architecture import tiny_config
from vqa_utils.tiny_base._corpus import QUESTIONS, Corpus, make_corpus, make_processor
from vqa_utils.tiny_base._fast_forward import forward, use_fast_forward

OUT = Path(__file__).parent / "model"
HELD_OUT = 2_000  # scenes
MOST_SKIPPED = 50  # steps without finite gradients; more are no accident


class Fit(NamedTuple):
    """The end of a training."""

    held_out_accuracy: float
    skipped_steps: int


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, corpus: Corpus, scenes: slice, pad: int, tokens: torch.Tensor
) -> float:
    """The share of right answers to the questions about some scenes.

    Args:
        tokens: the token ids of the letters a to d; the most probable of these is the answer.
    """
    hits = []
    for question in range(QUESTIONS):
        ids = corpus.ids[scenes, question].long()
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = forward(model, corpus.pixels[scenes], ids, pad).logits[:, -1]  # [B, V]
        chosen = tokens[logits[:, tokens].argmax(-1)]
        hits.append(chosen == corpus.letters[scenes, question])
    return torch.cat(hits).float().mean().item()


def clip_and_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> bool:
    """Update once with the gradient norm clipped at 1; without a finite norm, do not and say so."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    is_finite = bool(norm.isfinite())
    if is_finite:
        optimizer.step()
    else:
        bad = []
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                bad.append(name)
        print(
            f"skipped a step: NaN or infinite gradients in {len(bad)} tensors, such as {bad[:2]} "
            f"and {bad[-2:]}",
            flush=True,
        )
    optimizer.zero_grad()
    return is_finite


def make_model(processor: Qwen3VLProcessor, device: str) -> PreTrainedModel:
    """Make a model with random weights."""
    model: Any = Qwen3VLMoeForConditionalGeneration(tiny_config(processor.tokenizer))
    model = model.to(device)
    use_fast_forward(model)
    return model


def fit(
    model: PreTrainedModel, processor: Qwen3VLProcessor, corpus: Corpus, args: argparse.Namespace
) -> Fit:
    """Train on random questions about the scenes that are not held out.

    Raises:
        FloatingPointError: too many steps had NaN or infinite gradients.
    """
    start = time.time()
    device = corpus.ids.device
    pad = processor.tokenizer.pad_token_id
    tokens = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(LETTERS)), device=device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    warmup = min(300, args.steps // 10)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, args.steps)
    held_out = slice(0, min(HELD_OUT, args.scenes // 10))
    skipped = 0
    score = float("nan")
    for step in range(1, args.steps + 1):
        # [B]; the first scenes are held out, and never drawn here
        scene = torch.randint(held_out.stop, args.scenes, (args.batch,), device=device)
        question = torch.randint(QUESTIONS, (args.batch,), device=device)
        loss = backward(model, corpus, scene, question, pad)
        skipped += not clip_and_step(model, optimizer)
        schedule.step()
        if step % 500 == 0 or step == args.steps:
            score = accuracy(model, corpus, held_out, pad, tokens)
            seconds = time.time() - start
            print(
                f"step {step}: loss {loss:.3f}, held out {score:.4f}, {seconds:.0f} s", flush=True
            )
        if skipped > MOST_SKIPPED:
            raise FloatingPointError(
                f"step {step}: {skipped} steps had NaN or infinite gradients; lower the rate"
            )
    return Fit(score, skipped)


def backward(
    model: PreTrainedModel, corpus: Corpus, scene: torch.Tensor, question: torch.Tensor, pad: int
) -> torch.Tensor:
    """Compute the gradients of a batch.

    Args:
        scene: the numbers of the scenes, [B].
        question: the number of each one's question, [B].

    Returns:
        The cross-entropy of the right letters, in nats [], without the router's loss.
    """
    ids = corpus.ids[scene, question].long()
    with torch.autocast(ids.device.type, torch.bfloat16):
        out = forward(model, corpus.pixels[scene], ids, pad)
    # Over the whole vocabulary, so that the model learns to answer with a letter at all
    loss = F.cross_entropy(out.logits[:, -1].float(), corpus.letters[scene, question])
    router_loss = model.config.text_config.router_aux_loss_coef * out.aux_loss
    (loss + router_loss).backward()
    return loss.detach()


def train(args: argparse.Namespace) -> None:
    """Make the corpus, train, and write the model, its processor and `training.json`."""
    start = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    processor = make_processor(args.seed)
    corpus = make_corpus(processor, args.scenes, device)
    seconds = time.time() - start
    length = corpus.ids.shape[2]
    print(f"corpus: {args.scenes} scenes in {seconds:.0f} s, {length} tokens", flush=True)
    model = make_model(processor, device)
    fitted = fit(model, processor, corpus, args)

    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)  # fp16: 2 bytes per weight, 10 MB
    processor.save_pretrained(args.out)
    record = {key: value for key, value in vars(args).items() if key != "out"}
    record |= {
        "held_out_accuracy": round(fitted.held_out_accuracy, 4),
        "skipped_steps": fitted.skipped_steps,
        "seconds": round(time.time() - start),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--scenes", type=int, default=200_000, help=f"drawn scenes, {QUESTIONS} questions each"
    )
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
