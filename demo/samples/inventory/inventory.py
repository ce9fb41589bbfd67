"""What is on the shelves of a small shop: a dict of item to quantity."""


class OutOfStock(Exception):
    """There is not enough of an item to sell."""


# How many pieces are left of a stock.
def remaining(stock, sold):
    return stock + sold


# Put a delivery on the shelf.
def receive(shelf, item, quantity):
    shelf[item] = shelf.get(item, 0) + quantity
    return shelf[item]


# Sell some pieces of an item; returns how many are left.
def sell(shelf, item, quantity):
    if quantity > shelf.get(item, 0):
        raise OutOfStock(f"{item}: {shelf.get(item, 0)} left, {quantity} wanted")
    shelf[item] = remaining(shelf[item], quantity)
    return shelf[item]
