"""Bugs that were planted must be noticed: each by the tests that are meant for it."""

import re

import mutants
import pytest
from mutants import ROOT, planted
from planted_bugs import MUTANTS, Mutant

by_name = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
KEPT = Mutant("nothing", "per_point.py", "ACTIVE_VARIANCE = 0.01", "ACTIVE_VARIANCE = 1e-2", "test_per_point.py")


@by_name
def test_a_bug_can_be_planted_and_its_tests_are_there(mutant):
    compile(planted(mutant), mutant.file, "exec")
    for test in mutant.node_ids:
        file, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_every_bug_has_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(("old", "count"), [("def ", r"\d\d?"), ("no such text", "0")])
def test_text_that_does_not_occur_once_is_refused(old, count):
    with pytest.raises(ValueError, match=f"once in per_point.py, found it {count} times: nothing"):
        planted(KEPT._replace(old=old))


@pytest.mark.slow
def test_a_change_that_changes_nothing_survives_and_tests_that_cannot_run_are_no_death():
    assert not mutants.run(KEPT)
    for wrong in (KEPT._replace(tests="test_nothing.py"), KEPT._replace(new="import nothing_of_this_name")):
        with pytest.raises(RuntimeError, match="expected tests that run"):
            mutants.run(wrong)


@pytest.mark.slow
def test_the_tests_pass_where_no_bug_is_planted():
    mutants.run_unchanged(MUTANTS)


@pytest.mark.slow
@by_name
def test_a_planted_bug_is_noticed(mutant):
    assert mutants.run(mutant)
