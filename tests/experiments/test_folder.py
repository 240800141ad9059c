import dataclasses

import pytest

from nmstep.experiments.config import RunConfig
from nmstep.experiments.folder import check_same


@pytest.fixture
def config(tmp_path):
    (tmp_path / "new" / "glue").mkdir(parents=True)
    return RunConfig(recipe="dense", task="glue/rte", data=str(tmp_path / "new" / "glue"))


def saved(config, **changes):
    return dataclasses.replace(config, **changes).to_dict()


def test_data_that_have_moved_are_the_same_data(config, tmp_path):
    check_same(config, saved(config, data=str(tmp_path / "old" / "glue")), tmp_path, what="a run")


def test_data_of_another_name_or_still_there_are_other_data(config, tmp_path):
    (tmp_path / "other" / "glue").mkdir(parents=True)
    for data in (str(tmp_path / "old" / "glue-2"), str(tmp_path / "other" / "glue"), None):
        with pytest.raises(ValueError, match="holds a run of another configuration: data is"):
            check_same(config, saved(config, data=data), tmp_path, what="a run")


def test_what_is_there_is_named(config, tmp_path):
    with pytest.raises(
        ValueError, match="holds a measurement of another configuration: seed is 1 there, 0 here"
    ):
        check_same(config, saved(config, seed=1), tmp_path, what="a measurement")
