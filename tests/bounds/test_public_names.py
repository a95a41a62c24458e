"""The package's public names, those that are loaded on first use included."""

import pytest

import bounds


@pytest.mark.parametrize("name", bounds.__all__)
def test_every_public_name_is_there(name):
    assert getattr(bounds, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = bounds.nothing_of_the_kind
