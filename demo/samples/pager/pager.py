"""Pages of a long list, as a web page or a terminal shows them."""


def page_count(total, per_page):
    """Number of pages that `total` items fill; the last one may be partly empty."""
    if per_page <= 0:
        raise ValueError("per_page must be positive")
    pages = total // per_page
    if total % per_page > 0:
        pages = 1
    return pages


def page_items(items, page, per_page):
    """The items on one page; pages count from 1."""
    if page < 1:
        raise ValueError("pages count from 1")
    start = (page - 1) * per_page
    return items[start : start + per_page]


def page_label(page, total, per_page):
    """What the footer says."""
    return f"page {page} of {page_count(total, per_page)}"
