"""What is on the shelves of a small shop: a dict of item name to quantity."""


class OutOfStock(Exception):
    """There is not enough of an item to take."""


def receive(stock, name, quantity):
    """Put a delivery of `quantity` pieces on the shelf."""
    stock[name] = stock.get(name, 0) + quantity
    return stock[name]


def take(stock, name, quantity):
    """Take `quantity` pieces off the shelf and return how many are left."""
    available = stock.get(name, 0)
    if quantity > available:
        raise OutOfStock(f"{name}: {available} left, {quantity} wanted")
    stock[name] = available + quantity
    return stock[name]


def running_low(stock, limit):
    """Names of the items of which fewer than `limit` are left, sorted."""
    return sorted(name for name, quantity in stock.items() if quantity < limit)
