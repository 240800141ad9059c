"""Tiny GLUE folders and a tiny random BERT, for tests."""

from pathlib import Path

import torch

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "a",
    "house",
    "big",
    "small",
    "saw",
    "it",
    "not",
    "and",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROWS = {
    "RTE": ("index\tsentence1\tsentence2\tlabel", "{i}\t{a}\t{b}\t{c}", ("entailment", "not_entailment")),
    "QNLI": ("index\tquestion\tsentence\tlabel", "{i}\t{a}\t{b}\t{c}", ("entailment", "not_entailment")),
    "SST-2": ("sentence\tlabel", "{a}\t{c}", ("0", "1")),
    "CoLA": (None, "gj04\t{c}\t\t{a}", ("0", "1")),
    "MRPC": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{c}\t7\t8\t{a}\t{b}", ("0", "1")),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{i}\t7\t8\t{a}\t{b}\t{c}", ("0", "1")),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "{i}\tmain\tMSR\t2012\t1\tnone\tnone\t{a}\t{b}\t{c}",
        ("0", "1.250", "5.000"),
    ),
    "MNLI": (
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "{i}\t1\t2\tfiction\t{a}\t{b}\tneutral\t{c}",
        ("entailment", "neutral", "contradiction"),
    ),
}


def sentence(seed: int) -> str:
    """2 to 13 words that depend on the seed alone."""
    return " ".join(WORDS[(seed * 7 + k * (seed % 5 + 1)) % len(WORDS)] for k in range(2 + seed % 12))


def write_tsv(path: Path, title: str, count: int, *, first: int = 0) -> None:
    header, row, labels = ROWS[title]
    lines = [
        row.format(i=i, a=sentence(i), b=sentence(i + 3), c=labels[i % len(labels)])
        for i in range(first, first + count)
    ]
    if header is not None:
        lines.insert(0, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode())


def write_task(folder: Path, title: str, *, train: int = 40, dev: int = 20) -> Path:
    """Writes a task in the official layout and returns its folder."""
    place = folder / title
    write_tsv(place / "train.tsv", title, train)
    for name in ("dev_matched.tsv", "dev_mismatched.tsv") if title == "MNLI" else ("dev.tsv",):
        write_tsv(place / name, title, dev, first=100 if name == "dev_mismatched.tsv" else 50)
    return place


def write_tokenizer(folder: Path, *, extra: int = 0, typed: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *WORDS, *(f"extra{k}" for k in range(extra))]
    tokenizer = Tokenizer(models.WordPiece({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        **{f"{word[1:-1].lower()}_token": word for word in SPECIAL},
    ).save_pretrained(folder)


def write_model(
    folder: Path, kind: str = "AutoModel", config: str = "BertConfig", **settings: object
) -> None:
    import transformers

    from nmstep.tasks.quiet import quiet_transformers

    sizes = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    if config == "DistilBertConfig":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers"}
        renamed |= {"num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}
        sizes = {renamed.get(name, name): value for name, value in sizes.items()}
    with torch.random.fork_rng(), quiet_transformers(transformers):
        torch.manual_seed(0)
        made = getattr(transformers, config)(**{**sizes, **settings})
        getattr(transformers, kind).from_config(made).save_pretrained(folder)


def write_checkpoint(folder: Path, **settings: object) -> Path:
    write_model(folder, **settings)
    write_tokenizer(folder)
    return folder
