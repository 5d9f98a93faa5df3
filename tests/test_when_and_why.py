"""``when-and-why`` and ``interpolate``, from start to tables and figures."""

import pytest
import wing

from amortized_bayes.results import RunFolder, list_runs

SMALL = ("--points", "20", "--seeds", "0", "1", "--device", "cpu", "--jobs", "1")


def run(call, place, command, *given):
    ran = call(command, *SMALL, *given)
    assert ran.code == 0, ran.err
    info = next(info for info in list_runs(place / "results") if info.experiment == command)
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    return ran.out, folder


@pytest.mark.slow
def test_when_and_why_from_start_to_figures(call, place):
    out, folder = run(
        call, place, "when-and-why", "--models", "linear", "random-walk", "--steps", "300", "--widths", "0"
    )
    rows = folder.rows()
    assert {path.name for path in folder.path.glob("*.png")} == {"when_and_why.png", "when_and_why_steps.png"}

    def gap(metric="exact_family_gap", **factors):
        found = wing.one(rows, metric, seed=0, **{"sees": None, "k": None, **factors})
        return found["value"]

    for name in ("linear", "random-walk"):
        for guide in ("constant", "factorized"):
            assert gap(dataset=name, guide=guide) > -1e-9
    # in the linear model f of x_n reaches the optimum; constant VI does not
    assert gap(dataset="linear", guide="amortized", sees="own", k=0) < 0.1 * gap(dataset="linear", guide="constant")
    # the curve ends where the gap is, and begins at the same place for all
    curves = rows[(rows["metric"] == "behind_reference") & (rows["dataset"] == "linear") & (rows["seed"] == 0)]
    assert curves[curves["step"] == 0]["value"].nunique() == 1
    last = curves[(curves["guide"] == "constant")].sort_values("step").iloc[-1]
    assert last["value"] == gap(dataset="linear", guide="constant")
    assert last["step"] == 300
    assert "Linear model, the smallest family gap by what f sees: own point" in out
    assert "Family gap of A-VI by what f sees" in out
    # steps to 1% are those of the curve
    reached = wing.one(rows, "steps_to_share", dataset="linear", guide="amortized", seed=0, sees="own", k=0)["value"]
    own = curves[(curves["guide"] == "amortized") & (curves["k"] == 0)].sort_values("step")
    near = own[own["value"] <= 0.01 * own.iloc[0]["value"]]
    assert 0 < reached <= near.iloc[0]["step"]  # every second mark is kept
    assert (own[own["step"] < 0.5 * reached]["value"] > 0.01 * own.iloc[0]["value"]).all()
    exact = wing.one(rows, "log_p_exact", dataset="linear", seed=0)["value"]
    assert exact > wing.one(rows, "elbo_optimum", dataset="linear", seed=0)["value"]


@pytest.mark.slow
def test_interpolate_forecasts_what_training_would_leave(call, place):
    out, folder = run(call, place, "interpolate", "--models", "linear", "saw", "--steps", "100", "--widths", "0", "2")
    assert (folder.path / "interpolate.png").stat().st_size > 2_000
    rows = folder.rows()

    def value(metric, **factors):
        return wing.one(rows, metric, seed=1, **factors)["value"]

    enough = {"dataset": "saw", "sees": "own-and-next", "k": 0}
    assert value("forecast", **enough) < 1e-6
    assert value("forecast_exact", **enough) == pytest.approx(0, abs=1e-6)
    little = {"dataset": "saw", "sees": "next", "k": 0}
    assert value("forecast", **little) > 0.1
    assert value("forecast_exact", **little) > 0.1
    assert value("forecast", dataset="linear", sees="own", k=2) < 0.01
    assert "Forecast of the family gap, by what f sees" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("when-and-why --models walk", "--models"),
        ("when-and-why --points 3", "expected --points of 10 or more, got 3"),
        ("when-and-why --widths -1", "expected --widths of 0 or more"),
        ("when-and-why --learning-rate 0", "expected --learning-rate above 0, got 0"),
        ("interpolate --steps 0", "expected --steps of 1 or more, got 0"),
        ("interpolate --seeds 1 1", "--seeds"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, message):
    assert message in refused(*arguments.split())


def test_a_fit_that_diverges_is_recorded_and_the_others_finish(call, place):
    given = ("--models", "linear", "--widths", "0", "--steps", "150", "--learning-rate", "1e300")
    ran = call("when-and-why", *SMALL[:-1], "1", *given)
    (info,) = list_runs(place / "results")
    rows = RunFolder.open(info.path).rows()
    assert set(rows[rows["metric"] == "elbo_optimum"]["status"]) == {"ok"}
    failed = rows[rows["status"] == "failed"]
    assert len(failed)
    assert (failed["step"] > 0).all()
    assert "failed at step" in ran.out
