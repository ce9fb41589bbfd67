"""A member of a class is renamed where it certainly is that class's; what may be is told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from garzone.agent.context import CodeBase
from garzone.agent.member_renames import MemberRename, rename_member

CART = """from dataclasses import dataclass


@dataclass
class Cart:
    items: list

    def total(self):
        return sum(self.items)


class Till:
    def total(self):
        return 0
"""


def renamed(files: Mapping[str, str], old: str = "total", new: str = "sum_up", cart: str = CART) -> MemberRename:
    every = {"shop/cart.py": cart, **files}
    code = CodeBase(list(every), lambda name: every[name].encode())
    return rename_member(code, ("shop/cart.py", "Cart"), old, new)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c = Cart([])\nc.total()\n", "c = Cart([])\nc.sum_up()\n"),
        ("Cart([1]).total()\n", "Cart([1]).sum_up()\n"),
        ("f = Cart.total\n", "f = Cart.sum_up\n"),
        ("def pay(of: Cart):\n    return of.total()\n", "def pay(of: Cart):\n    return of.sum_up()\n"),
        ("def pay(of: 'Cart | None'): of.total()\n", "def pay(of: 'Cart | None'): of.sum_up()\n"),
        ("def pay(of: Optional[Cart]):\n    ü = of.total()\n", "def pay(of: Optional[Cart]):\n    ü = of.sum_up()\n"),
        ("def pay():\n    a: Cart = get()\n    return (\n        a\n        .total()\n    )\n",
         "def pay():\n    a: Cart = get()\n    return (\n        a\n        .sum_up()\n    )\n"),
        ("class Big(Cart):\n    async def total(self):\n        return super().total() + self.total()\n",
         "class Big(Cart):\n    async def sum_up(self):\n        return super().sum_up() + self.sum_up()\n"),
        ("c = Cart([])\ngetattr(c, 'total')()\nmock.patch.object(Cart, \"total\")\n",
         "c = Cart([])\ngetattr(c, 'sum_up')()\nmock.patch.object(Cart, \"sum_up\")\n"),
        ("c = Cart([])\ndef f():\n    return c.total()\n", "c = Cart([])\ndef f():\n    return c.sum_up()\n"),
    ],
)  # fmt: skip
def test_what_is_certainly_the_classs_follows(before: str, after: str) -> None:
    head = "from shop.cart import Cart\n"
    done = renamed({"use.py": head + before})
    assert [(edit.path, edit.after) for edit in done.edits] == [("use.py", head + after)]
    assert done.open == ()


@pytest.mark.parametrize(
    "text",
    [
        "Till().total()\n",
        "t = Till()\nt.total()\n",
        "import numpy\nnumpy.total(1)\n",
        "from pandas import frame\nframe.total\n",
        "class Own:\n    def total(self):\n        return self.total()\n",
        "def f(x: Till, y: dict[str, int]):\n    return x.total() + y.total\n",
        "import pandas as pd\ndef f(x: pd.DataFrame, y: 'pd.Series | None'):\n    return x.total() + y.total()\n",
        "'x'.total\nx = {}\nx.total\n",
        "from shop import cart\ncart.total\n",
        "total = 1\nf(total=total)\n# c.total()\n",
    ],
)
def test_what_is_certainly_anothers_stays_and_is_not_told(text: str) -> None:
    done = renamed({"use.py": f"from shop.cart import Cart, Till\n{text}"})
    assert (done.edits, done.open) == ((), ())


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x.total()\n",
        "x = make()\nx.total()\n",
        "x = Cart([]) if y else Till()\nx.total()\n",
        "x = Cart([])\nx = Till()\nx.total()\n",
        "for x in carts: x.total()\n",
        "[x.total() for x in carts]\n",
        "match x:\n    case Cart(total=t): pass\n",
        "getattr(x, 'total')\n",
        "attrgetter('total')\n",
        "self.cart.total()\n",
        "with Cart([]) as x:\n    x.total()\n",
    ],
)
def test_what_cannot_be_told_stays_and_is_told(text: str) -> None:
    done = renamed({"use.py": f"from shop.cart import Cart, Till\n{text}"})
    assert done.edits == ()
    assert len(done.open) == 1
    assert done.open[0].startswith("use.py:")


def test_fields_are_keywords_as_well_and_bases_share_them() -> None:
    base = "class Holder:\n    items: list\n"
    cart = "from dataclasses import dataclass\nfrom .base import Holder\n\n\n@dataclass\n"
    cart += "class Cart(Holder):\n    items: list\n"
    use = "from dataclasses import replace\nfrom shop.cart import Cart\nfrom shop.base import Holder\n"
    use += "c = Cart(items=[])\nd = replace(c, items=[1])\nh = Holder()\nh.items = c.items\n"
    done = renamed({"shop/base.py": base, "use.py": use}, "items", "goods", cart)
    assert [(edit.path, edit.after) for edit in done.edits] == [
        ("shop/base.py", base.replace("items", "goods")),
        ("use.py", use.replace("items", "goods")),
    ]
    assert done.open == ()


def test_a_base_that_is_not_in_the_repository_may_have_the_name_as_well() -> None:
    cart = "from threading import Thread\n\n\nclass Cart(Thread):\n    def run(self):\n        pass\n"
    done = renamed({}, "run", "work", cart)
    assert done.open == ("Cart inherits from Thread, which is not in the repository",)
