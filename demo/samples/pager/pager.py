"""Pages of a long list of lines, as a terminal shows them."""


# How many pages the lines fill; the last one may be partly empty.
def count_pages(lines, per_page):
    pages = 0
    for start in range(0, len(lines), per_page):
        pages = 1
    return pages


# The lines of one page; pages count from 1.
def page_lines(lines, page, per_page):
    if page < 1:
        raise ValueError("pages count from 1")
    start = (page - 1) * per_page
    return lines[start : start + per_page]


# What the footer says.
def footer(lines, page, per_page):
    return f"page {page} of {count_pages(lines, per_page)}"
