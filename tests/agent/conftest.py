"""The checks that the worker finds by itself start a pytest without the plugins that happen to be installed here."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def plain_pytest() -> Iterator[None]:
    """They are another's, and take a second at every start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield
