"""Tasks by name."""

from __future__ import annotations

import inspect

from nmstep.names import did_you_mean
from nmstep.tasks.cifar.task import Cifar10, Cifar100
from nmstep.tasks.digits import Digits
from nmstep.tasks.glue.task import GLUE
from nmstep.tasks.language.mlm import Mlm
from nmstep.tasks.language.wikitext import WikiText2, WikiText103
from nmstep.tasks.task import Task
from nmstep.tasks.text import Text
from nmstep.tasks.translation.task import Wmt17DeEn

_TASKS: dict[str, type[Task]] = {
    "digits": Digits,
    "text": Text,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "wikitext-2": WikiText2,
    "wikitext-103": WikiText103,
    "mlm": Mlm,
    "wmt17-de-en": Wmt17DeEn,
    **GLUE,
}


def available() -> tuple[str, ...]:
    """Returns the names that `load` knows.

    >>> available()[:8]
    ('digits', 'text', 'cifar10', 'cifar100', 'wikitext-2', 'wikitext-103', 'mlm', 'wmt17-de-en')
    """
    return tuple(_TASKS)


def check_name(name: str) -> None:
    """Raises ValueError if there is no such task; the message names the nearest."""
    _task_type(name)


def options(name: str) -> dict[str, object]:
    """Returns the options of a task with their defaults, without loading its data.

    Args:
        name: one of `available()`.

    Raises:
        ValueError: if there is no such task.

    >>> options("cifar10")
    {'model': 'resnet20', 'train_subset': None, 'test_subset': None, 'augment': True}
    """
    parameters = inspect.signature(_task_type(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "data"}


def load(name: str, *, data: str | None = None, **options: object) -> Task:
    """Returns a task by name, its data read and its options checked.

    Args:
        name: one of `available()`.
        data: where the data are: a local path or a hub name, as the task describes; None for the data that
            come with the package.
        **options: the task's own options; `nmstep.tasks.options` lists them.

    Raises:
        ValueError: if there is no such task or option, the task takes no data, or it rejects a value.
        FileNotFoundError: if there is nothing at `data`.

    >>> task = load("digits")
    >>> task.metric, task.batch(0, seed=0, batch_size=64).inputs.shape
    ('accuracy', torch.Size([64, 1, 8, 8]))
    """
    task_type = _task_type(name)
    parameters = inspect.signature(task_type).parameters
    known = [parameter for parameter in parameters if parameter != "data"]
    for option in options:
        if option not in known:
            raise ValueError(f"task {name!r} has no option {option!r}: {did_you_mean(option, known)}")
    arguments: dict[str, object] = dict(options)
    if "data" in parameters:
        arguments["data"] = data
    elif data is not None:
        raise ValueError(f"task {name!r} brings its own data and takes no data={data!r}: leave data out")
    return task_type(**arguments)


def _task_type(name: str) -> type[Task]:
    if name not in _TASKS:
        raise ValueError(f"there is no task {name!r}: {did_you_mean(name, _TASKS)}")
    return _TASKS[name]
