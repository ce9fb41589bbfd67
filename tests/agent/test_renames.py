"""A name is renamed where it certainly is that name, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from garzone.agent.context import CodeBase
from garzone.agent.renames import mentions, rename_elsewhere

MODULE = "def summed(items):\n    return sum(items)\n"


def renamed(files: Mapping[str, str], path: str = "shop/price.py") -> dict[str, str]:
    every = {path: MODULE, **files}
    code = CodeBase(list(every), lambda name: every[name].encode())
    return {edit.path: edit.after for edit in rename_elsewhere(code, path, "total", "summed")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from shop.price import total\ntotal([1])\n", "from shop.price import summed\nsummed([1])\n"),
        ("from shop.price import a, total as t\nt(1)\n", "from shop.price import a, summed as t\nt(1)\n"),
        ("import shop.price\nshop.price.total(1)\n", "import shop.price\nshop.price.summed(1)\n"),
        ("from shop import price\nx = price.total\n", "from shop import price\nx = price.summed\n"),
        ("from .price import total\n\ntotal(total(1))\n", "from .price import summed\n\nsummed(summed(1))\n"),
        (
            "from shop.price import (\n    a,\n    total,\n)\nü = 'ä'; total(1)\n",
            "from shop.price import (\n    a,\n    summed,\n)\nü = 'ä'; summed(1)\n",
        ),
        (
            "import shop.price as p\nmock.patch('shop.price.total', p.total)\n",
            "import shop.price as p\nmock.patch('shop.price.summed', p.summed)\n",
        ),
        # the old name is a local somewhere, or the new one is taken: nothing but the import changes
        ("from shop.price import total\nf = lambda total: total\n", "from shop.price import summed as total\n"
         "f = lambda total: total\n"),
        ("from shop.price import total\nsummed = total(1)\n", "from shop.price import summed as total\nsummed = "
         "total(1)\n"),
    ],
)  # fmt: skip
def test_uses_in_other_files_follow(before: str, after: str) -> None:
    assert renamed({"shop/use.py": before}) == {"shop/use.py": after}


@pytest.mark.parametrize(
    "text",
    [
        "from other import total\ntotal(1)\n",
        "def total():\n    return 1\n",
        "x.total\n'total'\n# total\n",
        "from shop.prices import total\n",
        "broken (\ntotal\n",
    ],
)
def test_what_is_another_name_stays(text: str) -> None:
    assert renamed({"shop/use.py": text}) == {}


def test_a_package_that_passes_the_name_on_passes_on_the_new_one() -> None:
    files = {
        "shop/__init__.py": 'from .price import total\n\n__all__ = ["total", "other"]\n',
        "use.py": "from shop import total\nimport shop\n\nprint(total([1]), shop.total)\n",
        "README.md": "Call total.\n",
    }
    assert renamed(files) == {
        "shop/__init__.py": 'from .price import summed\n\n__all__ = ["summed", "other"]\n',
        "use.py": "from shop import summed\nimport shop\n\nprint(summed([1]), shop.summed)\n",
    }
    code = CodeBase(list(files), lambda name: files[name].encode())
    assert mentions(code, "total", {"shop/__init__.py", "use.py"}) == ["README.md"]
