"""How the runs of a study came about: commands, commits, hardware, and their settings in a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nmstep.reports.groups import recipe_label
from nmstep.reports.paper.folder import StudyRuns

__all__ = ["provenance"]

Config = Mapping[str, Any]
_HASH = 10


def provenance(study: StudyRuns) -> dict[str, list[str]]:
    """Returns what a reader needs to do the same again: lists of lines under their headings.

    Values that differ between runs are all listed. Where no run is there yet, the place where the study was
    started speaks for it.

    Args:
        study: the study.
    """
    places = [run.environment for run in study.runs if run.environment]
    configs = [run.config for run in study.runs] or _measured(study.files)
    return {
        "command": _distinct([study.environment.get("command")]),
        "runs started by": _others(places, study.environment.get("command")),
        "commit": _distinct(_commit(place.get("commit")) for place in places or [study.environment]),
        "hardware": _distinct(_machine(place) for place in places or [study.environment]),
        "scale": _distinct([study.scale]),
        "settings": _settings(configs),
        "recipes": _recipes(configs),
    }


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _others(places: Sequence[Config], command: Any) -> list[str]:
    return [text for text in _distinct(place.get("command") for place in places) if text != command]


def _commit(value: Any) -> str:
    if not value:
        return ""
    text = str(value)
    return text[:_HASH] + (" and changes not committed" if text.endswith("+") else "")


def _machine(place: Config) -> str:
    threads = place.get("threads")
    parts = [
        place.get("gpu"),
        place.get("cpu"),
        None if threads is None else f"{threads} thread{'' if threads == 1 else 's'}",
        None if place.get("torch") is None else f"torch {place['torch']}",
        None if place.get("python") is None else f"Python {place['python']}",
    ]
    return ", ".join(str(part) for part in parts if part)


def _measured(files: Sequence[Path]) -> list[Config]:
    """Returns the configurations that measurements name."""
    configs: list[Config] = []
    for path in files:
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8")).get("config")
            configs += [config] if isinstance(config, dict) else []
    return configs


def _settings(configs: Sequence[Config]) -> list[str]:
    """Returns a line for each task: what all of its runs have in common, and the values where they differ."""
    tasks = dict.fromkeys(str(config.get("task")) for config in configs)
    return [_line(task, [c for c in configs if str(c.get("task")) == task]) for task in tasks]


def _line(task: str, configs: Sequence[Config]) -> str:
    options = {key: None for config in configs for key in config.get("task_options") or {}}
    chosen = [f"{key} {_values([c.get('task_options') or {} for c in configs], key)}" for key in options]
    own_data = _distinct(Path(str(c["data"])).name for c in configs if c.get("data"))
    decay, clip = _values(configs, "weight_decay"), _values(configs, "clip_norm")
    init = _distinct(Path(str(c["init"])).name for c in configs if c.get("init"))
    masked = _distinct(pattern for c in configs if c.get("pattern") for pattern in c.get("include") or ())
    parts = [
        f"{task} ({', '.join(chosen)})" if chosen else task,
        f"data {' or '.join(own_data)}" if own_data else "",
        f"starts from {' or '.join(init)}" if init else "",
        f"{_values(configs, 'steps')} steps of {_values(configs, 'batch_size')}",
        f"{_values(configs, 'optimizer')} {_moments(configs)}",
        f"lr {_values(configs, 'lr')}, {_values(configs, 'schedule')}{_warmup(configs)}",
        f"weight decay {decay}" if decay else "",
        f"gradients clipped at {clip}" if clip else "",
        f"{_values(configs, 'precision')} on {_values(configs, 'device') or 'cpu'}",
        f"masks on {', '.join(masked)}" if masked else "",
    ]
    return "; ".join(part for part in parts if part.strip())


def _moments(configs: Sequence[Config]) -> str:
    names = {config.get("optimizer", "adamw") for config in configs}
    adam = f"β {_values(configs, 'betas')}, ε {_values(configs, 'eps')}" if names != {"sgd"} else ""
    momentum = f"momentum {_values(configs, 'momentum')}" if "sgd" in names else ""
    return "(" + "; ".join(part for part in (adam, momentum) if part) + ")"


def _warmup(configs: Sequence[Config]) -> str:
    steps = _values(configs, "warmup")
    return "" if steps in ("", "0") else f" after {steps} steps of warmup"


def _values(configs: Sequence[Config], key: str) -> str:
    texts = _distinct(_text(config.get(key)) for config in configs)
    return " or ".join(texts)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return f"({', '.join(_text(item) for item in value)})" if isinstance(value, (list, tuple)) else str(value)


def _recipes(configs: Sequence[Config]) -> list[str]:
    """Returns a line for each recipe whose options are not all at their defaults."""
    found: dict[str, list[Config]] = {}
    for config in configs:
        if config.get("options"):
            found.setdefault(str(config.get("recipe")), []).append(config["options"])
    lines = []
    for recipe, options in found.items():
        keys = dict.fromkeys(key for option in options for key in option)
        text = ", ".join(f"{key} {_values(options, key)}" for key in keys)
        lines.append(f"{recipe_label(recipe)}: {text}")
    return lines
