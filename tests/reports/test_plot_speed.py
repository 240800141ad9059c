import pytest

pytest.importorskip("matplotlib")

from nmstep.reports.plots import plot_speed


def speed(fp32, bf16):
    def timing(ratio):
        return {"ratio": ratio, "low": 0.9 * ratio, "high": 1.2 * ratio, "ms": ratio, "other_ms": 1.0}

    return {"fp32": timing(fp32), "bf16": timing(bf16)}


def layer(size, rows=(1, 4), dense_from=None):
    return {
        "names": ["a"] * (1 if size == 8 else 2),
        "shape": [size, 4],
        "pattern": "2:4",
        "dense_from": dense_from,
        "rungs": [{"rows": count, **speed(3.0, 1.5)} for count in rows],
    }


def record(*layers):
    model = [{"examples": size, **speed(2.0, 0.5)} for size in (1, 16)]
    return {"threads": 1, "model": model, "layers": list(layers)}


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_model_and_each_kind_of_layer_have_a_panel():
    panels = plot_speed(record(layer(8), layer(16))).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["the model, 1 thread", "16 × 4, 2:4 (2 layers)", "8 × 4, 2:4 (1 layer)"]
    assert [axes.get_xlabel() for axes in panels] == ["examples at once", "rows at once", "rows at once"]


def test_lines_are_speed_ups_over_dense_fp32():
    model, _ = plot_speed(record(layer(8))).axes
    (bars,) = model.containers
    assert bars.get_label() == "packed"
    assert list(bars.lines[0].get_ydata()) == [2.0, 2.0]
    # dense fp32 takes twice as long as packed, dense bf16 half as long: four times as fast as dense fp32.
    assert list(lines(model)["dense bf16"].get_ydata()) == [4.0, 4.0]
    assert list(lines(model)["dense bf16"].get_xdata()) == [1, 16]
    assert set(lines(model)["dense fp32"].get_ydata()) == {1}
    low, high = model.get_ylim()
    assert low < 1.0
    assert high > 4.0


@pytest.mark.parametrize("bf16", [0.3, 1.0, 60.0])
@pytest.mark.parametrize("fp32", [0.02, 0.9, 48.0])
def test_one_large_ratio_leaves_room_for_the_others(fp32, bf16):
    one = layer(8, rows=(1, 16))
    one["rungs"][0] = {"rows": 1, **speed(fp32, bf16)}
    axes = plot_speed(record(one)).axes[1]
    low, high = axes.get_ylim()
    shown = [1.0, 0.9 * fp32, 1.2 * fp32, fp32 / bf16, 3.0, 3.6, 2.0]
    assert low < min(shown)
    assert max(shown) < high
    up, one, down = (axes.transData.transform((1, y))[1] for y in (2, 1, 0.5))
    assert up - one == pytest.approx(one - down)  # twice as fast is as far up as half as fast is down
    ticks = axes.get_yticks()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "1" in labels
    assert len(labels) == len(set(labels)) == len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)


def test_of_many_kinds_those_with_most_weights_are_drawn():
    panels = plot_speed(record(*(layer(4 * size) for size in range(1, 13)))).axes
    assert len(panels) == 9
    assert panels[1].get_title(loc="left").startswith("48 ×")


def test_where_a_layer_turns_dense_is_marked():
    _, packed, turned = plot_speed(record(layer(16), layer(8, dense_from=2))).axes
    assert "the layer runs dense" not in lines(packed)
    assert "the layer runs dense" in lines(turned)
    assert [2, 2] in [list(line.get_xdata()) for line in turned.get_lines()]


def test_one_number_of_rows_is_in_the_middle():
    axes = plot_speed(record(layer(8, rows=(49,)))).axes[1]
    low, high = axes.get_xlim()
    assert low < 49 < high
