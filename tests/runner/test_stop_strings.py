"""Stop strings end an answer where they complete, however the text arrives."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from garzone.runner.stop_strings import StopMatcher

FEW_LETTERS = st.text(alphabet="ab\n", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3)


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(stops)
    out: list[str] = []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.matched is not None:
            return "".join(out), matcher.matched, out
    return "".join(out) + matcher.finish(), None, out


@given(STOPS, FEW_LETTERS, st.lists(st.integers(0, 24), max_size=8))
def test_any_cut_of_the_text_shows_the_same(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert shown(stops, pieces)[:2] == shown(stops, list(text))[:2]


@given(STOPS, FEW_LETTERS)
def test_what_is_shown_is_the_text_before_the_first_stop_string_to_complete(stops: list[str], text: str) -> None:
    result, matched, _ = shown(stops, list(text))
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    assert result == (text[: min(ends)[1]] if ends else text)
    assert (matched is not None) == bool(ends)


@given(STOPS, FEW_LETTERS)
def test_nothing_shown_is_ever_taken_back(stops: list[str], text: str) -> None:
    matcher, so_far = StopMatcher(stops), ""
    for index, letter in enumerate(text):
        so_far += matcher.push(letter)
        assert text.startswith(so_far)
        held = text[len(so_far) : index + 1]
        assert matcher.matched is not None or not held or any(stop.startswith(held) for stop in stops)
        if matcher.matched is not None:
            break


def test_empty_stop_strings_stop_nothing() -> None:
    assert shown([""], ["abc"])[:2] == ("abc", None)


def test_a_stop_string_over_two_pieces_leaves_no_trace() -> None:
    assert shown(["</s>"], ["Hello</", "s> more"])[:2] == ("Hello", "</s>")


def test_a_false_alarm_is_shown_in_the_end() -> None:
    assert shown(["</s>"], ["Hello</", "p>"])[:2] == ("Hello</p>", None)
