"""What the figures hold: lines, labels, marks; and what they do without data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmstep import reports
from nmstep.reports import load_runs
from nmstep.reports.plots.series import mean_series
from nmstep.reports.plots.style import _columns

Write = Callable[..., Path]
PLOTS = (
    reports.plot_metric,
    reports.plot_variance_norm,
    reports.plot_switch,
    reports.plot_flip_rate,
    reports.plot_final_metric,
)


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize("plot", PLOTS)
def test_every_figure_is_drawn_with_labels_and_without_warnings(
    plot: Callable[..., Any], comparison: Path, tmp_path: Path
) -> None:
    figure = plot(load_runs(comparison))
    figure.savefig(tmp_path / "x.png")
    assert all(axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert legend(figure)


@pytest.mark.parametrize("plot", PLOTS)
def test_no_data_no_figure(plot: Callable[..., Any], write: Write) -> None:
    folder = write("asp", "1:4", 0, 97.0, finished=False)
    (folder / "metrics.jsonl").write_text("")
    assert plot(load_runs(folder)) is None


@pytest.mark.parametrize("plot", PLOTS)
def test_pyplot_and_global_settings_are_left_alone(plot: Callable[..., Any], comparison: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot(load_runs(comparison))
    assert dict(mpl.rcParams) == before


def test_the_metric_has_a_panel_for_each_pattern_and_the_dense_run_in_each(comparison: Path) -> None:
    figure = reports.plot_metric(load_runs(comparison))
    assert figure is not None
    assert titles(figure) == ["digits, 1:4", "digits, 1:16"]
    for axes in figure.axes:
        assert axes.get_ylabel() == "held-out accuracy (%)"
        drawn = lines(axes)
        assert {"dense", "ASP", "SR-STE", "STEP", "STEP while dense, with its mask"} <= set(drawn)
        assert drawn["dense"].is_dashed()
        # Seeds end at 98 and 99; at step 50 both are 10 lower.
        assert list(drawn["dense"].get_ydata())[-1] == pytest.approx(98.5)
        assert list(drawn["dense"].get_ydata())[4] == pytest.approx(88.5)


def test_the_dense_phase_of_step_is_drawn_from_its_masked_evaluations(comparison: Path) -> None:
    figure = reports.plot_metric(load_runs(comparison))
    assert figure is not None
    drawn = lines(figure.axes[0])
    dotted = drawn["STEP while dense, with its mask"]
    assert list(dotted.get_xdata()) == [10, 20, 30, 40, 50]  # up to the first sparse evaluation
    # Masked values are 30 below the dense model's: final - 20 (1 - step / 100).
    assert dotted.get_ydata()[0] == pytest.approx(98.0 - 18)
    assert list(drawn["STEP"].get_xdata()) == [50, 60, 70, 80, 90, 100]
    assert [text.get_text() for text in figure.axes[0].texts] == ["STEP: masks start"]


def test_an_accuracy_of_exactly_100_stays_on_the_axis(write: Write, tmp_path: Path) -> None:
    folder = write("asp", "1:4", 0, 100.0)
    figure = reports.plot_metric(load_runs(folder))
    assert figure is not None
    figure.savefig(tmp_path / "x.png")
    low, high = figure.axes[0].get_ylim()
    assert low < 90 < high == 100.0


def test_the_variance_norm_is_the_geometric_mean_on_a_log_scale(comparison: Path) -> None:
    runs = load_runs(comparison)
    figure = reports.plot_variance_norm(runs)
    assert figure is not None
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    # Norms are 0.1 step (1 + 0.1 seed) with seeds 0 and 1.
    assert list(lines(axes)["SR-STE"].get_ydata())[9] == pytest.approx(math.sqrt(1.0 * 1.1))
    assert "‖v‖₁" in axes.get_ylabel()
    second = reports.plot_variance_norm(runs, norm=2)
    assert second is not None
    assert "‖v‖₂" in second.axes[0].get_ylabel()
    assert list(lines(second.axes[0])["SR-STE"].get_ydata())[9] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="expected 1 for"):
        reports.plot_variance_norm(runs, norm=3)  # type: ignore[arg-type]


def test_the_switch_is_marked_with_its_reason_beside_the_threshold(comparison: Path) -> None:
    figure = reports.plot_switch(load_runs(comparison))
    assert figure is not None
    assert titles(figure) == ["digits, STEP 1:4", "digits, STEP 1:16"]
    drawn = lines(figure.axes[0])
    assert list(drawn["threshold"].get_ydata()) == [1e-7, 1e-7]
    assert "Z at each step (seed 0)" in drawn
    assert [text.get_text() for text in figure.axes[0].texts] == ["switch at 40: latest step allowed"]
    assert figure.axes[0].get_yscale() == "log"


def test_an_open_switch_says_so(write: Write) -> None:
    folder = write("step", "1:4", 0, 97.0, finished=False, steps=30)
    figure = reports.plot_switch(load_runs(folder))
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["no switch yet"]


def test_a_criterion_that_is_no_mean_of_z_is_not_drawn_against_z(write: Write) -> None:
    folder = write("step", "1:4", 0, 97.0)
    file = folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        if record.get("z_mean"):
            record["z_mean"] *= 1e5
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = reports.plot_switch(load_runs(folder))
    assert figure is not None
    assert legend(figure) == ["what the switch compares", "threshold"]


def test_flip_rates_in_percent_by_layer_where_masks_are_chosen_anew(comparison: Path) -> None:
    figure = reports.plot_flip_rate(load_runs(comparison))
    assert figure is not None
    assert titles(figure) == [
        f"digits, {recipe} {p}" for p in ("1:4", "1:16") for recipe in ("SR-STE", "STEP")
    ]
    assert legend(figure) == ["conv2", "fc1"]
    assert lines(figure.axes[0])["fc1"].get_ydata()[0] == pytest.approx(100 * 0.1 / 21)
    assert list(lines(figure.axes[1])["fc1"].get_xdata()) == [60, 80, 100]


def test_many_layers_get_a_colour_scale_instead_of_a_legend(write: Write, tmp_path: Path) -> None:
    folder = write("ste", "1:4", 0, 97.0, layers=tuple(f"blocks.{i}.weight" for i in range(12)))
    figure = reports.plot_flip_rate(load_runs(folder))
    assert figure is not None
    figure.savefig(tmp_path / "x.png")
    assert not figure.legends
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["blocks.0", "blocks.6", "blocks.11"]


def test_the_final_metric_by_pattern(comparison: Path) -> None:
    figure = reports.plot_final_metric(load_runs(comparison))
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1:4", "1:16"]
    assert list(lines(axes)["dense"].get_ydata()) == [98.5, 98.5]
    assert legend(figure) == ["dense", "ASP", "SR-STE", "STEP"]


def test_means_take_only_the_steps_that_all_runs_have_and_long_curves_are_thinned(comparison: Path) -> None:
    runs = load_runs(comparison)[:2]
    columns = {runs[0].name: {1: 1.0, 2: 2.0, 3: math.nan}, runs[1].name: {2: 4.0, 3: 5.0}}
    series = mean_series(runs, lambda run: columns[run.name])
    assert series is not None
    assert (series.steps, series.mean) == ([2], [3.0])
    assert series.high[0] - 3.0 == pytest.approx(math.sqrt(2))
    long = mean_series(runs, lambda _: dict.fromkeys(range(1, 10_001), 1.0))
    assert long is not None
    assert len(long.steps) <= 1500
    assert long.steps[-1] == 10_000


def test_the_legend_takes_the_columns_that_fit() -> None:
    assert _columns(["dense", "ASP", "STEP"], 7.2) == 3
    assert _columns(["a label of some forty letters, or nearly so"] * 3, 7.2) == 1
