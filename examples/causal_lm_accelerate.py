"""A causal language model in a loop of one's own, with Accelerate.

Without --data it reads the Shakespeare of the package byte by byte; without
--model it makes a tiny GPT-2. On two processes without a GPU:

export ACCELERATE_USE_CPU=true
accelerate launch --multi_gpu --num_processes 2 examples/causal_lm_accelerate.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

import nmstep
from nmstep.integrations.accelerate import prepare, save
from nmstep.integrations.trackers import Feed, JsonLines, TensorBoard
from nmstep.tasks.text_files import read_text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a text file, or a folder of WikiText or .txt files")
    parser.add_argument("--model", help="a hub name or a folder; its tokenizer is used too")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="of each process")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument(
        "--resume", action="store_true", help="from the checkpoint in --out, with the same settings"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write event files")
    parser.add_argument("--out", type=Path, default=Path("runs/causal-lm"))
    return parser.parse_args()


def model_and_tokens(args: argparse.Namespace) -> tuple[Any, Tensor, Tensor]:
    """Returns a model, and the tokens to train on and to score."""
    texts = read_text(args.data)
    if args.model:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model)
        ids = [tokenizer(text.decode())["input_ids"] for text in texts]
        return model, torch.tensor(ids[0]), torch.tensor(ids[1])
    config = transformers.GPT2Config(
        vocab_size=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=args.context,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    train, held_out = (torch.frombuffer(bytearray(text), dtype=torch.uint8).long() for text in texts)
    return model, train, held_out[:8192]


def windows(tokens: Tensor, context: int) -> Tensor:
    return tokens[: len(tokens) // context * context].view(-1, context)


@torch.no_grad()
def perplexity(accelerator: Accelerator, model: Any, loader: Any) -> float:
    model.eval()
    losses = [
        accelerator.gather_for_metrics(model(input_ids=x, labels=x).loss.repeat(len(x))) for x in loader
    ]
    model.train()
    return math.exp(float(torch.cat(losses).mean()))


def main() -> None:
    args = arguments()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate)
    model, train, held_out = model_and_tokens(args)
    generator = torch.Generator().manual_seed(0)
    data = DataLoader(windows(train, args.context), args.batch_size, shuffle=True, generator=generator)
    test = DataLoader(windows(held_out, args.context), args.batch_size)
    # Before the masks torch's AdamW, to the bit; the recipe is attached before anything is prepared.
    optimizer = nmstep.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    switch = nmstep.AutoSwitch(window=max(2, min(1000, args.steps // 10)), clip=(0.1, 0.5))
    recipe = nmstep.STEP(args.pattern, total_steps=args.steps, switch=switch)
    sparsifier, model, optimizer, data, test = prepare(
        accelerator, model, optimizer, data, test, recipe=recipe
    )

    if args.resume:
        accelerator.load_state(str(args.out / "checkpoint"))
    trackers: list[Any] = [JsonLines(args.out / "nm_trace.jsonl")]
    if args.tensorboard:
        trackers.append(TensorBoard(args.out / "tensorboard", every=10))
    feed = Feed(sparsifier, trackers if accelerator.is_main_process else [], vars(args))

    while sparsifier.step < args.steps:
        for batch in data:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    sparsifier.log_loss(loss)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            if sparsifier.step % args.checkpoint_every == 0:
                feed.flush()
                accelerator.save_state(str(args.out / "checkpoint"))
            if sparsifier.step >= args.steps:
                break
    feed.finish()

    sparsifier.finalize()
    score = perplexity(accelerator, model, test)
    sparse = save(accelerator, model, sparsifier, args.out / "final")
    accelerator.print(sparsifier)
    accelerator.print(f"perplexity {score:.2f}; {args.out / 'final'}: {'N:M' if sparse else 'NOT N:M'}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
