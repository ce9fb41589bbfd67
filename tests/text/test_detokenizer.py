from hypothesis import given
from hypothesis import strategies as st

from garzone.testing import ByteTokenizer
from garzone.text.detokenizer import Detokenizer


class Pieces:
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


def stream(pieces: list[bytes]) -> list[str]:
    detokenizer = Detokenizer(Pieces(pieces))
    return [*map(detokenizer.push, range(len(pieces))), detokenizer.finish()]


@given(raw=st.binary(max_size=60) | st.text(max_size=30).map(str.encode), data=st.data())
def test_however_bytes_are_cut_into_tokens_the_text_is_the_same(raw: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(stream(pieces)) == raw.decode(errors="replace")


@given(text=st.text(max_size=30))
def test_valid_text_never_shows_a_replacement_character_on_the_way(text: str) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    assert "".join(stream(pieces)) == text
    for piece in stream(pieces):
        assert "\ufffd" not in piece or "\ufffd" in text


def test_bytes_wait_until_they_are_a_character() -> None:
    assert stream([b"\xf0\x9f", b"\xa6", b"\x80!"]) == ["", "", "🦀!", ""]


def test_bytes_that_cannot_become_one_are_replaced_at_once() -> None:
    assert stream([b"a\xff", b"b"]) == ["a\ufffd", "b", ""]
    assert stream([b"\xf0\x9f", b"x"]) == ["", "\ufffdx", ""]
    assert stream([b"\xe4\xb8"]) == ["", "\ufffd"]


def test_finish_starts_afresh() -> None:
    detokenizer = Detokenizer(ByteTokenizer())
    assert detokenizer.push(0xC3) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(ord("a")) == "a"
    assert detokenizer.push(ByteTokenizer.bos_id) == ""
    assert detokenizer.finish() == ""
