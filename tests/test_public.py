"""What the package exports exists, and has a docstring with an example that the doctests run."""

import pytest

import amortized_bayes


@pytest.mark.parametrize("name", amortized_bayes.__all__)
def test_public_name_has_an_example(name):
    assert ">>>" in getattr(amortized_bayes, name).__doc__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = amortized_bayes.nothing_of_the_kind
