"""A quick part of the list: the stages are those a person would choose, and everything they name can be trained."""

import pytest

from tests.networks.trial import try_network
from tests.networks.zoo import QUICK, ZOO


@pytest.mark.parametrize("name", QUICK)
def test_a_network(name):
    assert try_network(ZOO[name]).problems == []


def test_the_list_is_long():
    assert len(ZOO) >= 40
