"""Calls of ``RunConfig.from_dict`` with values of all kinds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import strategies as st

from nmstep.experiments import RunConfig
from soak.calls.contract import Answer, call

__all__ = ["check_config", "config_cases"]

_names = [field.name for field in dataclasses.fields(RunConfig)]
_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["2:4", "1:16", "adamw", "sgd", "cpu", "cuda", "digits", "text", "dense", "asp", "step"]),
)
_values = st.one_of(
    _plain, st.lists(_plain, max_size=3), st.dictionaries(st.text(max_size=4), _plain, max_size=2)
)
_options = st.dictionaries(
    st.sampled_from(
        ["start", "refine", "interval", "switch", "threshold", "window", "clip", "eps_root", "strat"]
    ),
    st.one_of(_plain, st.tuples(st.floats(0, 1), st.floats(0, 1)).map(list)),
    max_size=3,
)
#: Keys and values of a configuration: mostly few, so that some are accepted.
config_cases = st.tuples(
    st.dictionaries(st.one_of(st.sampled_from(_names), st.text(max_size=4)), _values, max_size=3),
    st.sampled_from(["2:4", "1:16", None]),
    st.sampled_from(["step", "asp", "dense", "sr-ste"]),
    _options,
)


def check_config(case: tuple[dict[str, Any], str | None, str, dict[str, Any]]) -> None:
    """One configuration: refused with the key that is wrong, or it survives its own file."""
    values, pattern, recipe, options = case
    whole = {"pattern": pattern, "recipe": recipe, "options": options} | values
    outcome = call(RunConfig.from_dict, whole, source="x.json")
    if isinstance(outcome, Answer):
        spelled = outcome.value.to_dict()
        again = RunConfig.from_dict(json.loads(json.dumps(spelled)))
        assert repr(again) == repr(outcome.value), "another configuration came back from its file"
        told = {key: value for key, value in whole.items() if value != {} and key != "options"}
        assert all(_is_told(spelled[key], value) for key, value in told.items()), "a value was lost"


def _is_told(spelled: Any, given: Any) -> bool:
    if isinstance(given, str) and ":" in given:
        return spelled is not None
    return repr(spelled) == repr(given) or spelled == given
