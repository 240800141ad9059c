"""GLUE with transformers' Trainer: two lines more than without nmstep.

Without --data and --model it makes sentences and a tiny BERT, and ends in
seconds. On two processes without a GPU:

export ACCELERATE_USE_CPU=true
accelerate launch --multi_gpu --num_processes 2 examples/glue_trainer.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import nmstep
from nmstep.integrations.transformers import SparsityCallback, optimizer_for
from nmstep.tasks.glue import sources
from nmstep.tasks.glue.files import read_glue
from nmstep.tasks.glue.sources import GlueExamples, GlueSource

TASKS = {
    "cola": sources.COLA,
    "sst2": sources.SST2,
    "mrpc": sources.MRPC,
    "qqp": sources.QQP,
    "rte": sources.RTE,
}
TASKS |= {"qnli": sources.QNLI, "mnli": sources.MNLI_MATCHED, "stsb": sources.STSB}
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "over",
    "near",
    "mat",
    "tree",
    "house",
    "not",
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, default="rte")
    parser.add_argument("--data", help="nyu-mll/glue, or a folder with the task's tsv or parquet files")
    parser.add_argument("--model", help="a hub name or a folder")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, help="5e-5, or 1e-3 for the tiny model")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    parser.add_argument(
        "--resume", action="store_true", help="from the last checkpoint in --out, with the same settings"
    )
    return parser.parse_args()


def made_up(count: int, seed: int) -> GlueExamples:
    """Pairs of sentences; one entails the other if it says the same with fewer words."""
    generator = torch.Generator().manual_seed(seed)
    first, second, labels = [], [], []
    for _ in range(count):
        words = [WORDS[int(i)] for i in torch.randint(len(WORDS), (8,), generator=generator)]
        others = [WORDS[int(i)] for i in torch.randint(len(WORDS), (4,), generator=generator)]
        same = bool(torch.rand(1, generator=generator) < 0.5)
        first.append(" ".join(words))
        second.append(" ".join(words[:4] if same else others))
        labels.append(int(not same))
    return GlueExamples(first=first, second=second, labels=torch.tensor(labels))


def read(source: GlueSource, data: str | None) -> tuple[GlueExamples, GlueExamples]:
    return read_glue(source, data) if data else (made_up(256, 0), made_up(64, 1))


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def model_and_tokenizer(name: str | None, labels: int) -> tuple[Any, Any]:
    if name:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=labels)
        return model, transformers.AutoTokenizer.from_pretrained(name)
    tokenizer = tiny_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=labels,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config), tokenizer


def encode(examples: GlueExamples, tokenizer: Any) -> list[dict[str, Any]]:
    tokens = tokenizer(examples.first, examples.second, truncation=True, max_length=128)
    rows = zip(*tokens.values(), examples.labels.tolist(), strict=True)
    return [dict(zip([*tokens, "labels"], row, strict=True)) for row in rows]


def sparse_layers(model: Any, pattern: str) -> nmstep.SparsityPlan:
    """The encoder's layers: the head is new and small, and stays dense."""
    head = [name for name in ("classifier", "score", "pre_classifier") if hasattr(model, name)]
    return nmstep.plan(model, pattern, exclude=head)


def main() -> None:
    args = arguments()
    source = TASKS[args.task]
    train, held_out = read(source, args.data)
    labels = 1 if source.is_regression else len(source.labels)
    model, tokenizer = model_and_tokenizer(args.model, labels)
    settings = transformers.TrainingArguments(
        str(args.out),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr or (5e-5 if args.model else 1e-3),
        weight_decay=0.01,
        warmup_steps=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=10,
        average_tokens_across_devices=False,  # it would multiply a classifier's loss by the number of processes
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    batch = settings.train_batch_size * settings.world_size
    steps = round(-(-len(train.labels) // batch) * args.epochs)
    # A run this short has no thousand steps for AutoSwitch's window, so it is told its own.
    switch = nmstep.AutoSwitch(window=max(2, min(1000, steps // 10)), clip=(0.1, 0.5))
    recipe = nmstep.STEP(sparse_layers(model, args.pattern), total_steps=steps, switch=switch)

    def scores(prediction: Any) -> dict[str, float]:
        logits = torch.as_tensor(prediction.predictions)
        targets: Tensor = torch.as_tensor(prediction.label_ids)
        if source.is_regression:
            return {"mse": float((logits.squeeze(1) - targets).square().mean())}
        return {"accuracy": float((logits.argmax(1) == targets).float().mean())}

    trainer = transformers.Trainer(
        model,
        settings,
        train_dataset=encode(train, tokenizer),
        eval_dataset=encode(held_out, tokenizer),
        processing_class=tokenizer,
        compute_metrics=scores,
        optimizer_cls_and_kwargs=optimizer_for(settings, recipe),
        callbacks=[sparsity := SparsityCallback()],
    )
    trainer.train(resume_from_checkpoint=args.resume or None)
    result = trainer.evaluate()
    trainer.save_model(str(args.out / "final"))
    if trainer.is_world_process_zero():
        report = nmstep.verify(args.out / "final")
        found = {name.removeprefix("eval_"): value for name, value in result.items()}
        print(sparsity.sparsifier)
        print(", ".join(f"{name} {found[name]:.4f}" for name in ("accuracy", "mse", "loss") if name in found))
        print(
            f"{args.out / 'final'}: {'N:M' if report.ok else 'NOT N:M'}, {len(report.checked)} weights checked"
        )


if __name__ == "__main__":
    main()
