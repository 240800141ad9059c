"""LoRA on an N:M model: an adapter is trained, merged and tuned under its masks.

Without --model it makes a tiny 2:4 GPT-2; give the folder of an N:M model, as
nmstep or save_pretrained wrote it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

import nmstep
from nmstep.integrations.peft import merge_adapter
from nmstep.tasks.text_files import read_text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the folder of an N:M model and its tokenizer")
    parser.add_argument("--data", help="a text file, or a folder of WikiText or .txt files")
    parser.add_argument("--masks", choices=("keep", "choose"), default="keep")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of the adapter; half as many after the merge")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/lora"), help="new, or empty")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty: name another folder")
    return args


def sparse_model_and_tokens(args: argparse.Namespace) -> tuple[Any, Tensor]:
    text = read_text(args.data)[0]
    if args.model:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model)
        return model, torch.tensor(tokenizer(text[: 1 << 20].decode(errors="ignore"))["input_ids"])
    config = transformers.GPT2Config(
        vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    optimizer = nmstep.AdamW(model.parameters(), lr=3e-3)
    sparsifier = nmstep.sparsify(model, optimizer, nmstep.SRSTE("2:4"))
    train(model, optimizer, tokens, steps=40)
    sparsifier.finalize()
    return model, tokens


def train(model: Any, optimizer: torch.optim.Optimizer, tokens: Tensor, *, steps: int) -> float:
    """Returns the mean loss of the last ten steps."""
    losses: list[float] = []
    model.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(tokens) - 64, (16,), generator=generator)
        batch = torch.stack([tokens[s : s + 64] for s in starts.tolist()])
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    model, tokens = sparse_model_and_tokens(args)
    config = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear")
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=args.lr)
    print(f"adapter: loss {train(adapted, optimizer, tokens, steps=args.steps):.3f}")

    merged = merge_adapter(adapted, masks=args.masks)
    lost = sum(merged.lost.values()) / max(1, len(merged.lost))
    print(f"merged: {len(merged.report.checked)} weights N:M; masks cut {lost:.0%} of the updates' norm")

    # ASP from step 0 takes over the zeros as they are; no weight comes back.
    merged.model.requires_grad_(True)
    tuned = nmstep.AdamW(merged.model.parameters(), lr=args.lr / 10)
    sparsifier = nmstep.sparsify(merged.model, tuned, nmstep.ASP(merged.plan))
    print(f"tuned: loss {train(merged.model, tuned, tokens, steps=max(1, args.steps // 2)):.3f}")
    sparsifier.finalize()
    nmstep.export_dense(merged.model, args.out, plan=merged.plan)
    print(f"{args.out}: {'N:M' if nmstep.verify(args.out).ok else 'NOT N:M'}")


if __name__ == "__main__":
    main()
