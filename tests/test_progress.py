"""Progress of a whole run."""

import time

import pytest

from amortized_bayes.progress import Forecast, Progress, duration, watched


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_away_from_a_terminal_a_line_comes_every_30_seconds(capsys, clock):
    with Progress(terminal=False) as progress:
        for second in range(100):
            clock[0] = 1_000.0 + second
            job = "job 1/3 first" if second < 50 else "job 2/3 second"
            progress.show(second / 200, 200.0 - second, job, "training", 10 * second, 2_000, "ELBO -90.0")
        progress.say("half of it")
    assert capsys.readouterr().out.splitlines() == [
        "[    30 s] 15%, 3 min left  job 1/3 first  training 300/2,000  ELBO -90.0",
        "[    60 s] 30%, 2 min left  job 2/3 second  training 600/2,000  ELBO -90.0",
        "[    90 s] 45%, 2 min left  job 2/3 second  training 900/2,000  ELBO -90.0",
        "half of it",
    ]


def test_what_is_left_is_said_only_where_it_is_known(capsys, clock):
    with Progress(terminal=False) as progress:
        for fraction, left in ((0.1, None), (0.99, 0.01)):
            clock[0] += 31
            progress.show(fraction, left, "all", "AIS", 1, 2)
    first, second = capsys.readouterr().out.splitlines()
    assert "left" not in first
    assert "1 s left" in second  # never 0 while work remains


def test_a_terminal_has_one_bar_for_the_run(capsys):
    with Progress(terminal=True) as progress:
        progress.show(0.5, 60.0, "k = [4]", "training", 1, 2)
        progress.say("a [red]line[/red] above")
        (task,) = progress.bar.tasks
        assert task.completed == 0.5
        assert task.description == "50%, 60 s left  k = [4]  training 1/2"
    assert "a [red]line[/red] above" in capsys.readouterr().out


def test_an_error_ends_the_bar():
    shown = Progress(terminal=True)

    def fail():
        with shown as progress:
            progress.show(0.1, None, "all", "training", 1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not shown.bar.live.is_started


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "1 s"), (40, "40 s"), (720, "12 min"), (12_600, "3.5 h"), (250_000, "2.9 days")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_notebook_has_one_line_that_moves(capsys, clock):
    with Progress(terminal=False, notebook=True) as progress:
        for part in range(4):
            clock[0] += 0.2
            progress.show(part / 4, None, "", "fit", part, 4)
        progress.say("done")
    assert capsys.readouterr().out == "\r0%  fit 0/4\r50%  fit 2/4\ndone\n"


def test_progress_means_the_same_in_every_call(capsys, clock):
    calls = []
    with watched(lambda *call: calls.append(call)) as told:
        told("fit", 1, 4)
        told.say("not said")
    assert calls == [("fit", 1, 4)]
    with watched(False) as told:
        clock[0] += 100
        told("fit", 1, 4)
        told.say("not said")
    assert capsys.readouterr() == ("", "")
    with watched(True) as told:
        clock[0] += 31
        told("fit", 0, 4)
        clock[0] += 31
        told("fit", 1, 4)
        told.say("said")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        *("[    31 s] 0%  fit 0/4", "[    62 s] 25%, 2 min left  fit 1/4", "said"),
    ]
    with pytest.raises(TypeError, match="expected progress as True, False or a function"), watched("yes"):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(("pace", "words"), [(0.1, ""), (2.0, "about 3 min expected; shorter with less work\n")])
def test_a_long_run_is_forecast_once_from_its_first_second(capsys, clock, pace, words):
    with watched(True) as told:
        forecast = Forecast(told, "less work")
        clock[0] += 500  # compiling, say
        for done in range(10, 90):
            forecast(done, 100)
            clock[0] += pace
    assert capsys.readouterr().err == words


def test_work_that_begins_anew_is_forecast_from_its_new_pace(capsys, clock):
    with watched(True) as told:
        forecast = Forecast(told, "less work")
        forecast(99, 1200)  # near the end of a round that was over in no time
        for done in range(101):
            clock[0] += 0.1
            forecast(done, 1200)
    assert capsys.readouterr().err == "about 2 min expected; shorter with less work\n"  # and not three hours
