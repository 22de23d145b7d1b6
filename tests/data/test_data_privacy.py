"""Personal data: what is found, what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.privacy import KINDS, luhn, redact, redact_batch

FOUND = {
    "email": ["ann.ox@mill.org", "a+b@sub.domain.co.uk", "x_y@xn--bcher-kva.de"],
    "ip": ["8.8.8.8", "151.101.0.223", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e"],
    "phone": ["+44 20 7946 0958", "(415) 555-2671", "415-555-2671", "1-415-555-2671", "+4915123456789", "415.555.2671"],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "3782 822463 10005"],
}
LEFT = {
    "email": [
        "git@github.com:me/it",
        "user@example.com",
        "@decorator",
        "a @ b",
        "sd_IN@devanagari.UTF-8",
        "x@localhost",
    ],
    "ip": [
        "127.0.0.1",
        "192.168.1.10",
        "256.1.1.1",
        "version 1.2.3.4",
        "v1.2.3.4",
        "pkg==1.2.3.4",
        "pkg-1.2.3.4",
        "section 3.2.1.1",
        "1.3.6.1.5.5.7",
        "12:34:56",
        "std::vec::Vec",
        "a[1::2]",
        "::1",
        "fe80::1",
        "2026-01-01T00:00:00",
    ],
    "phone": [
        "1.2.3.4",
        "2024-01-02",
        "2024-01-02 12:34:56",
        "20240102",
        "3.14159265358979",
        "978-0-13-110362-7",
        "0x12345678",
        "+1 2 3",
        "1 000 000 000",
        "10.1145/3458817.3476195",
    ],
    "card": [
        "4111 1111 1111 1112",
        "1234567890123456",
        "0000 0000 0000 0000",
        "6364136223846793005",
        "2024-01-02 12:34:56",
    ],
}


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, all_ in FOUND.items() for what in all_])
def test_found(kind: str, what: str) -> None:
    text, count = redact(f"Reach me: {what}, or ({what}).", kind)
    assert count == 2
    assert what not in text
    assert text.count(f"<{kind}>") == 2
    assert redact_batch(["nothing", f"It is {what}."], KINDS)[1][kind] == [0, 1]  # the gate lets it through


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, all_ in LEFT.items() for what in all_])
def test_left_alone(kind: str, what: str) -> None:
    text = f"It says {what} and more; ({what})"
    assert redact(text, kind) == (text, 0)


@pytest.mark.parametrize(
    "line",
    [
        "__version__ = '1.2.3.4'",
        "if version >= 1.2.3.4: pass",
        "requires pkg ~=1.2.3.4",
        "released 2024-01-02, 2023-11-30",
    ],
)
def test_versions_and_dates_in_code_are_no_phones_nor_cards(line: str) -> None:
    _, counts = redact_batch([line], ("phone", "card"))
    assert counts == {"phone": [0], "card": [0]}


def test_luhn_against_known_numbers() -> None:
    # Test numbers that card networks publish, and the example of ISO/IEC 7812-1.
    for number in ("4111111111111111", "378282246310005", "6011111111111117", "79927398713"):
        assert luhn(number)
        for digit in set("0123456789") - {number[-1]}:
            assert not luhn(number[:-1] + digit)  # exactly one check digit fits


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="@0123456789:"), max_size=200))
def test_text_without_digits_at_and_colon_is_never_changed(text: str) -> None:
    texts, counts = redact_batch([text.encode("utf-8", "ignore").decode()], KINDS)
    assert texts == [text.encode("utf-8", "ignore").decode()]
    assert not any(any(found) for found in counts.values())


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=" abc1.-:(+\n@", max_size=60), st.sampled_from([(k, w) for k, ws in FOUND.items() for w in ws]))
def test_a_find_between_blanks_never_survives(around: str, find: tuple[str, str]) -> None:
    kind, what = find
    text = f"{around}; {what} ;{around}"
    redacted, counts = redact_batch([text], (kind,))
    assert what not in redacted[0]
    assert counts[kind][0] >= 1


def test_only_the_kinds_asked_for() -> None:
    texts, counts = redact_batch(["a@b.org 8.8.8.8"], ("ip",))
    assert texts == ["a@b.org <ip>"]
    assert counts == {"ip": [1]}
