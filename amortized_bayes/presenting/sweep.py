"""What a sweep found, in words: which guide closes how much of the gap, how fast, and what is uncertain.

Every sentence uses all seeds, and only fits with an active latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

from amortized_bayes import labels, selection
from amortized_bayes.guides.registry import GUIDES, Fit
from amortized_bayes.presenting.cells import listed, with_seeds
from amortized_bayes.presenting.fits import (
    CLOSED,
    all_fits,
    best_width,
    by_seed,
    closed_already,
    closes_gap,
    is_below,
    is_sound,
    mean_of,
    never_closed,
    of_guide,
    ratio,
    shares,
    widths,
    within,
)
from amortized_bayes.selection import Found

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["sweep"]

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Shares of the gap for which the narrowest encoder is named."""
CLAIMED_WIDTH = 64
"""From this width on A-VI closes the gap (Margossian & Blei, 2024)."""
CLAIMED_RATIOS = (2.0, 3.0)
"""F-VI takes so many times as long as A-VI, as the authors' code claims."""
OWN, AFTER = Fit("factorized"), Fit("factorized-from-amortized")


def sweep(finals: pd.DataFrame) -> Iterator[str]:
    """Yield what a sweep found of each data set."""
    for key, rows in selection.groups(finals, ("dataset",)):
        label = labels.dataset_label(str(key["dataset"]))
        if "guide" in rows.columns and (rows["metric"] == "final_elbo").any():
            yield from (f"{label}: {sentence}." for sentence in _about(rows))


def _about(rows: pd.DataFrame) -> Iterator[str]:
    reference = cast("pd.DataFrame", rows[rows["metric"] == "elbo_reference"])
    seeds = set(rows["seed"])
    if without := seeds - set(reference["seed"]):
        who = with_seeds(without, seeds)
        yield f"there is no reference{who}, {_why(rows, without)}; gaps and times are unavailable"
        return
    if dead := set(reference[reference["status"] == "vacuous"]["seed"]):
        yield f"no latent of the reference is active{with_seeds(dead, seeds)}; gaps and times mean nothing"
        return
    yield from _gaps(rows, reference)
    yield from _narrowest(rows)
    yield from _equal_histories(rows)
    yield from _times(rows)
    yield from _closing_claim(rows)
    yield from _speed_claim(rows)
    yield from _convergence(rows)


def _why(rows: pd.DataFrame, seeds: set[int]) -> str:
    """Why there is no reference with some seeds."""
    own = cast("pd.DataFrame", rows[rows["seed"].isin(seeds) & rows["guide"].isin([OWN.guide, AFTER.guide])])
    if not len(own):
        return "since F-VI was not fitted"
    return "since no F-VI succeeded" if not (own["metric"] == "final_elbo").any() else "since fits are not compared yet"


def _gaps(rows: pd.DataFrame, reference: pd.DataFrame) -> Iterator[str]:
    """How far each family is behind the reference, and which share of the gap to constant VI it closes."""
    whose = reference["note"].str.split("; ").str[-1]  # after what all rows of the run note
    names = " or ".join(
        f"{who}{with_seeds(set(part['seed']), set(rows['seed']))}" for who, part in reference.groupby(whose)
    )
    over = f"{len(reference)} seeds" if len(reference) > 1 else "points, one seed"
    yield f"the reference is the best F-VI found, {names}; errors are over {over}"
    whole, parts, left_out = of_guide(rows, "family_gap", "constant"), [], []
    for fit in all_fits(rows):
        gap, share = (of_guide(rows, metric, *fit) for metric in ("family_gap", "gap_closed"))
        if fit.guide == "constant" or (fit.guide in GUIDES and GUIDES[fit.guide].starts_from):
            continue
        if not is_sound(rows, fit) or gap is None:
            left_out.append(_name(fit))
        elif whole is None or share is None:
            parts.append(f"{_name(fit)} ends {_size(gap)} {'below' if gap.value >= 0 else 'above'}")
        else:
            parts.append(f"{_name(fit)} closes {_share(share)} ({_left(gap)})")
    if parts and whole is not None:
        size = f"{_size(whole)} nats per point {'below' if whole.value >= 0 else 'above'}"
        yield f"constant VI ends {size} the reference; of this gap {', '.join(parts)}"
    elif parts:
        yield f"relative to the reference, in nats per point, {', '.join(parts)}"
    if left_out:
        yield f"left out, since not every seed has a fit with an active latent: {', '.join(left_out)}"


def _narrowest(rows: pd.DataFrame) -> Iterator[str]:
    found = {k: share for k in widths(rows) if (share := of_guide(rows, "gap_closed", "amortized", k))}
    if not found:
        return
    enough: dict[str, list[str]] = {}
    never = []
    for level in LEVELS:
        short = {k: is_below(share, level) for k, share in found.items()}
        sure = next((k for k in short if short[k] is False), None)
        maybe = next((k for k in short if short[k] is None and (sure is None or k < sure)), None)
        who = [f"k = {k} ({_share(found[k])})" for k in (sure, maybe) if k is not None]
        if sure is not None:
            enough.setdefault(" or, within its error, ".join(who), []).append(f"{level:.0%}")
        elif maybe is not None:
            yield f"it is uncertain whether any width tried closes {level:.0%} of the gap: {who[0]}"
        else:
            never.append(f"{level:.0%}")
    if enough:
        (who, levels), *others = enough.items()
        more = "".join(f", that closes {listed(levels)} {who}" for who, levels in others)
        among = "" if set(found) == {k for guide, k in all_fits(rows) if guide == "amortized"} else " compared here"
        yield f"the narrowest encoder{among} that closes {listed(levels)} of the gap is {who}{more}"
    if never:
        yield f"no width tried closes {never[0]} of the gap"


def _equal_histories(rows: pd.DataFrame) -> Iterator[str]:
    """A-VI and F-VI, continued for equally many steps from the same solution."""
    starts, after = _starts(rows), by_seed(rows, "family_gap", AFTER)
    if starts is None or after is None or not all(is_sound(rows, fit) for fit in {AFTER, *starts.values()}):
        return
    gaps = {fit: by_seed(rows, "family_gap", fit) or {} for fit in starts.values()}
    difference = mean_of([gaps[fit][seed] - after[seed] for seed, fit in starts.items()])
    (first, *others) = set(starts.values())
    if len(starts) == 1 and after[next(iter(starts))] == 0:  # it is the reference: the paired error is known
        difference = of_guide(rows, "family_gap", *first) or difference
    name = "the best A-VI" if others else f"k = {first.k}"
    where = "above" if difference.value >= 0 else "below"
    sentence = (
        f"F-VI continued from {name}'s solution ends {_size(difference)} nats per point "
        f"{where} {name} continued for as many steps"
    )
    yield sentence + _doubt(rows, starts.values(), abs(difference.value))


def _starts(rows: pd.DataFrame) -> dict[int, Fit] | None:
    """The fit from which F-VI from A-VI continued, by seed: the best at half of the budget; ``None`` if unknown."""
    if "epochs" not in rows.columns:
        return None
    elbos = selection.where(rows, {"metric": "elbo"})
    own = cast("pd.DataFrame", elbos[elbos["guide"] == AFTER.guide])
    halves = cast("pd.DataFrame", elbos[(elbos["guide"] == "amortized") & elbos["epochs"].isin([own["epochs"].min()])])
    best = {
        int(cast("int", seed)): Fit("amortized", int(part.sort_values("value")["k"].iloc[-1]))
        for seed, part in halves.groupby("seed")
    }
    return best if set(best) == set(rows["seed"]) else None


def _times(rows: pd.DataFrame) -> Iterator[str]:
    """How much longer F-VI takes than A-VI to close a share of the gap."""
    seeds = set(rows["seed"])
    never: dict[tuple[Fit, str], list[str]] = {}
    already: dict[tuple[Fit, str], list[str]] = {}
    for share in shares(rows):
        parts = []
        for k in _compared(rows):
            steps, seconds = (_times_of(rows, clock, k, share) for clock in ("steps", "seconds"))
            if steps and seconds:
                parts.append(f"{_number(steps)}× the steps and {_number(seconds)}× the time of k = {k}")
        if parts:
            yield f"F-VI needed {' and '.join(parts)} to close {share:.0%} of the gap"
        for fit in [OWN, *(Fit("amortized", k) for k in _compared(rows))]:
            for kind, those in ((never, never_closed), (already, closed_already)):
                if is_sound(rows, fit) and (some := those(rows, fit, share)):
                    kind.setdefault((fit, with_seeds(some, seeds)), []).append(f"{share:.0%}")
    for (fit, who), missed in never.items():
        yield f"{_name(fit)} did not close {listed(missed, 'or')} of the gap{who}: its time to that share is unknown"
    for (fit, who), closed in already.items():
        share = f"{listed(closed)} of the gap{who}"
        yield f"with the smallest budget {_name(fit)} already closes {share}: it may need less time for that"


def _closing_claim(rows: pd.DataFrame) -> Iterator[str]:
    claim = f"that A-VI closes the gap for k ≥ {CLAIMED_WIDTH} (Margossian & Blei 2024)"
    wide = [k for k in widths(rows) if k >= CLAIMED_WIDTH]
    gaps = {k: gap for k in wide if (gap := of_guide(rows, "family_gap", "amortized", k))}
    whole = of_guide(rows, "family_gap", "constant")
    if not gaps or whole is None or not whole.value > 0:
        yield f"{claim} cannot be told: no such width has a sound fit beside constant VI"
        return
    parts = [
        f"k = {k} leaves {gap.value / whole.value:.1%} of it ({_size(gap)} nats)"
        if gap.value >= 0
        else f"k = {k} ends {_size(gap)} nats above the reference"
        for k, gap in gaps.items()
    ]
    told = {closes_gap(rows, k) for k in gaps}
    holds = "does not hold here" if False in told else "cannot be told here" if None in told else "holds here"
    rule = f"closed means less than {CLOSED:.0%} left"
    small = max(CLOSED * whole.value, *(abs(gap.value) for gap in gaps.values()))
    doubt = _doubt(rows, [OWN, *(Fit("amortized", k) for k in gaps)], small)
    yield f"{claim} {holds}: {', '.join(parts)} ({rule}){doubt}"


def _speed_claim(rows: pd.DataFrame) -> Iterator[str]:
    low, high = CLAIMED_RATIOS
    claim = f"that A-VI is {low:.0f} to {high:.0f} times faster than F-VI"
    best, verdicts = best_width(rows), {}
    for share in shares(rows) if best is not None else []:
        if found := _times_of(rows, "seconds", best, share):
            holds = within(found, low, high)
            verdict = "cannot be told" if holds is None else "holds" if holds else "does not hold"
            verdicts.setdefault(verdict, []).append(f"{share:.0%} ({_number(found)}×)")
    if not verdicts:
        yield f"{claim} cannot be told: for no share of the gap are the times of both known with every seed"
        return
    parts = [f"{verdict} here to close {listed(found)} of the gap" for verdict, found in verdicts.items()]
    alone = "" if rows["seed"].nunique() > 1 else "; with one seed, ratios have no error"
    yield f"{claim}, in seconds, {', '.join(parts)}, with k = {best}{alone}"


def _convergence(rows: pd.DataFrame) -> Iterator[str]:
    gains = {fit: gain for fit in all_fits(rows) if (gain := of_guide(rows, "unconverged_by", *fit))}
    if gains:
        parts = "; ".join(f"{_name(fit)}: {_number(gain)}" for fit, gain in gains.items())
        yield f"the last doubling of the budget gained, in nats per point, {parts}"


def _doubt(rows: pd.DataFrame, fits: Iterable[Fit], difference: float) -> str:
    """A caveat where the last doubling gained a fit more than the fits differ by."""
    gains = {fit: gain for fit in fits if (gain := of_guide(rows, "unconverged_by", *fit))}
    fit = max(gains, key=lambda fit: gains[fit].value, default=None)
    if fit is None or gains[fit].value <= difference:
        return ""
    return f"; longer fits may differ, since the last doubling gained {_name(fit)} {_number(gains[fit])}"


# Words ----------------------------------------------------------------------------------------------------------------


def _compared(rows: pd.DataFrame) -> list[int]:
    """The widths with which F-VI's times are compared: the best width, and the width of the claim."""
    best = best_width(rows)
    return [k for k in dict.fromkeys((best, CLAIMED_WIDTH)) if k is not None and k in widths(rows)]


def _times_of(rows: pd.DataFrame, clock: str, k: int | None, share: float) -> Found | None:
    if not is_sound(rows, OWN):
        return None
    return ratio(rows, f"{clock}_to_share", OWN, Fit("amortized", k), share=share)


def _name(fit: Fit) -> str:
    return labels.guide_label(*fit)


def _left(gap: Found) -> str:
    return f"{_size(gap)} {'left' if gap.value >= 0 else 'above'}"


def _share(share: Found) -> str:
    if share.value <= 0:
        return "none"
    error = f"±{100 * share.error:.1f}" if math.isfinite(share.error) else ""
    return f"{100 * share.value:.1f}{error}%"


def _size(found: Found) -> str:
    return _number(found._replace(value=abs(found.value)))


def _number(found: Found) -> str:
    digits = 1 if abs(found.value) >= 10 or found.error >= 0.095 else 2
    return f"{found.value:.{digits}f}" + (f"±{found.error:.{digits}f}" if math.isfinite(found.error) else "")
