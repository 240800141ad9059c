import pytest

from nmstep.experiments.paper import STUDIES, Study, Workload


@pytest.fixture
def workload():
    """Four steps of digits."""

    def of(scope):
        return Workload(
            name="digits",
            title="Digits",
            settings={
                "task": "digits",
                "steps": 4,
                "batch_size": 8,
                "checkpoint_every": 1,
                "device": "cpu",
                "threads": 1,
            },
            seeds=scope.seeds or (0, 1),
        )

    return of


@pytest.fixture
def define(monkeypatch):
    """Puts a study made by a function of the scope in place of one of the paper's."""

    def put(name, parts):
        def made(scope):
            return Study(name=name, title="Tiny", claim="It runs.", view="scores", **parts(scope))

        monkeypatch.setitem(STUDIES, name, made)

    return put


@pytest.fixture
def tiny(define, workload):
    """Two tiny studies with their dense runs in common: table2, and fig4 with STE too."""

    def cells(scope, *rows):
        found = [workload(scope).cell("dense", "dense", column="Digits")]
        found += [workload(scope).cell(row, row.lower(), "1:16", column="Digits") for row in rows]
        return {"cells": tuple(found) if scope.only is None or "digits" in scope.only else ()}

    define("table2", lambda scope: cells(scope))
    define("fig4", lambda scope: cells(scope, "STE"))


class Recorder:
    """Remembers what it is told."""

    def __init__(self):
        self.started_at = {}
        self.ended_as = {}

    def started(self, name, total, step):  # noqa: ARG002
        self.started_at[name] = step

    def update(self, name, status):
        pass

    def ended(self, name, outcome):
        self.ended_as[name] = outcome.error


@pytest.fixture
def recorder():
    return Recorder
