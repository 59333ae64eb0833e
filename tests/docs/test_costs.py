"""The page of costs holds what its formula gives, and the formula gives what was measured."""

import pytest

from tests.docs.costs import CORE_FLOPS, config_of, forward_flops, screens, table
from tests.docs.pages import DOCS


def test_the_page_holds_what_the_formula_gives() -> None:
    lines = (DOCS / "costs.md").read_text().splitlines()
    assert set(table() + screens()) <= set(lines)


def test_operations_of_one_layer_by_hand() -> None:
    """V1, two tokens, one layer: 2 x 2 tokens x 524,288 weights, and attention 4 x 2^2 x 256."""
    config = config_of("v1-10m")
    assert forward_flops(config, 2, layer=-5) == 2 * 2 * 524_288 + 4 * 4 * 256
    assert forward_flops(config, 2, layer=0) == 6 * forward_flops(config, 2, layer=-5)


@pytest.mark.parametrize(("tokens", "two_cores"), [(256, 85.2), (512, 31.0), (1024, 13.6)])
def test_the_formula_gives_what_was_measured(tokens: int, two_cores: float) -> None:
    told = 2 * CORE_FLOPS / forward_flops(config_of("v1-10m"), tokens)
    assert told == pytest.approx(two_cores, rel=0.2)
    assert f"{two_cores} " in (DOCS / "costs.md").read_text()
