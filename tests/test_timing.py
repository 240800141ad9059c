import pytest

from nmstep import timing


class Clock:
    """Time that passes only while programs run."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, {}
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def program(self, name, seconds):
        def step():
            self.calls[name] = self.calls.get(name, 0) + 1
            self.now += seconds

        return step


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_two_programs_take_turns(clock):
    found = timing.in_turn(clock.program("ours", 0.5), clock.program("theirs", 0.25), rounds=5)
    assert (found.ratio, found.low, found.high) == (2, 2, 2)
    assert (found.ms, found.other_ms) == (500, 250)
    assert clock.calls == {"ours": 7, "theirs": 7}  # two of them before anything is timed


def test_several_programs_take_turns_against_one(clock):
    ours = [clock.program("a", 0.5), clock.program("b", 2.0)]
    found = timing.in_turns(ours, clock.program("theirs", 1.0), rounds=4, seconds=100)
    assert [(t.ratio, t.ms, t.other_ms) for t in found] == [(0.5, 500, 1000), (2, 2000, 1000)]
    assert set(clock.calls.values()) == {6}


def test_rounds_end_with_their_time_and_are_three_at_least(clock):
    steps = [clock.program("a", 0.5)], clock.program("theirs", 0.5)
    timing.in_turns(*steps, rounds=15, seconds=5.0)
    assert clock.calls == {"a": 7, "theirs": 7}
    timing.in_turns(*steps, rounds=15, seconds=0.1)
    assert clock.calls == {"a": 12, "theirs": 12}


def test_short_programs_are_called_in_blocks_as_time_allows(clock):
    short = 2.0**-10
    steps = [clock.program("short", short)], clock.program("long", 1.0)
    timing.in_turns(*steps, rounds=3, seconds=1000, block=8)
    assert clock.calls == {"short": 2 + 3 * 8, "long": 5}
    clock.calls.clear()
    timing.in_turns(
        [clock.program("short", short)], clock.program("short too", short), rounds=3, seconds=0.03
    )
    assert clock.calls["short"] == 2 + 3 * int(0.03 / 6 / short)
