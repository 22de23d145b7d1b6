"""Personal data: what is found, what is left alone, and that texts, counts and rules agree."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from document_tables import first_reasons
from gristmill.data.config import PrivacyConfig
from gristmill.data.privacy import KINDS, find, privacy_rules, privacy_step, redact
from gristmill.data.privacy.numbers import luhn
from gristmill.data.schema import DOCUMENTS
from gristmill.data.step import check_chain

PEM = "\n".join(["MIIEow1B+/" * 6] * 3)
FOUND = {
    "email": [
        *(
            "ann.ox@mill.org",
            "a+b@sub.domain.co.uk",
            "x_y@xn--bcher-kva.de",
            "müller@bücher.example.de",
            "O'Brien@mill.ie",
        ),
        *("ann (at) mill (dot) org", "ann[at]mill.org", "ANN@MILL.ORG", "почта@пример.рф"),
    ],
    "ip": [
        "81.2.69.142",
        "151.101.0.223",
        "2a00:1450:4001:81b::200e",
        "2001:41d0:1:1b00:213:186:33:50",
        "2002:5102:458e::1",
    ],
    "phone": [
        *(
            "+44 20 7946 0958",
            "+44 (0)20 7946 0958",
            "(415) 555-2671",
            "415-555-2671",
            "1-415-555-2671",
            "+4915123456789",
        ),
        *("415.555.2671", "+1 (415) 555-2671", "01 23 45 67 89", "020 7946 0958", "0151 23456789", "030/12345678"),
        *("03-1234-5678", "(11) 91234-5678", "8 (495) 123-45-67", "06-12345678", "+7 495 123-45-67", "0049 30 123456"),
        *("+33 1 23 45 67 89", "+86 138 1234 5678", "(089) 1234567", "+1.4155552671"),
    ],
    "card": [
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "3782 822463 10005",
        "6011111111111117",
        "3566002020360505",
        "30569309025904",
        "2223003122003222",
    ],
    "ssn": ["219-45-6789", "001-01-0001"],
    "iban": [
        "DE89370400440532013000",
        "GB29 NWBK 6016 1331 9268 19",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO9386011117947",
    ],
    "key": [
        "AKIA" + "Q3EGRIZLQ7Y2JNHM",
        "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
        "xoxb-" + "123456789012-abcdefGHIJKL",
        "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
        "AIza" + "SyA1bC2dE3fG4hI5jK6lM7nO8pQ9rS0tU1v",
        "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
        "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2m3N4",
        "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
        "npm_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    ],
}
LEFT = {
    "email": [
        *("git@github.com:me/it", "user@example.com", "@decorator", "a @ b", "sd_IN@devanagari.UTF-8", "x@localhost"),
        *(
            "getty@tty1.service",
            "lodash@4.17.21",
            "q@k.transpose(0, 1)",
            "icon@2x.png",
            "$user@host.com",
            "look (at) this",
        ),
    ],
    "ip": [
        *(
            "127.0.0.1",
            "192.168.1.10",
            "256.1.1.1",
            "version 1.2.3.4",
            "v1.2.3.4",
            "pkg==1.2.3.4",
            "pkg-1.2.3.4",
            "6.1.8.78.",
        ),
        *(
            "section 3.2.1.1",
            "1.3.6.1.5.5.7",
            "12:34:56",
            "std::vec::Vec",
            "a[1::2]",
            "::1",
            "fe80::1",
            "2001:db8::1",
            "8.8.8.8",
        ),
        *(
            "2026-01-01T00:00:00",
            "00:1A:2b:3c:4d:5e",
            "13.32.0.0/15",
            "91.0.4472.124",
            "Tool/81.2.69.142",
            "81.2.69.142-5",
        ),
        *("203.0.113.7", "255.255.255.0", "2002:1::2", "dead:beef", "61.092.13.141"),
    ],
    "phone": [
        *(
            "1.2.3.4",
            "2024-01-02",
            "2024-01-02 12:34:56",
            "20240102",
            "3.14159265358979",
            "978-0-13-110362-7",
            "0x12345678",
        ),
        *("+1 2 3", "1 000 000 000", "10.1145/3458817.3476195", "+2147483647", "1 073 741 824", "00 30 00 00 00 00 07"),
        *(
            "3c 01 00 00 89 44 24",
            "0.002118  0.405453",
            "mtd0: 00800000 00001000",
            "12 34 56 78",
            "555-1234",
            "192.168.100.200",
        ),
    ],
    "card": [
        "4111 1111 1111 1112",
        "1234567890123456",
        "0000 0000 0000 0000",
        "6364136223846793005",
        "0.4111111111111111",
    ],
    "ssn": ["000-12-3456", "666-12-3456", "912-34-5678", "123-00-4567", "123-45-0000", "123 45 6789", "123456789"],
    "iban": ["DE89370400440532013001", "DE8937040044053201300", "XX89370400440532013000", "AB12 3456 7890 1234 5678"],
    "key": [
        *(
            "AKIA",
            "sk-learn-contrib-package-name-long",
            "password = os.environ['PASSWORD']",
            'password="password"',
            "token: str",
        ),
        *(
            'secret = "<your secret here>"',
            "api_key=None",
            "password: hunter",
            "hf_hub_download_and_a_long_function_name",
        ),
        'token = "${CI_JOB_TOKEN_1234567890abcdef}"',
        "AKIAIOSFODNN7EXAMPLE",
        '"NextToken": "GcqyoAJuZwujOT35EN4LCI3EUzMtiLq3"',
        "arn:aws:secretsmanager:us-west-2:123456789012:secret:MyTestSecret-1a2b3c4d",
    ],
    "credentials": [
        "https://user:password@host/x",
        "https://host:80/@a",
        "http://me:s3cr3t@example.com",
        "https://$U:$P@mill.org",
    ],
}


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, every in FOUND.items() for what in every])
def test_found(kind: str, what: str) -> None:
    text = f"Reach me: {what}, or ({what})."
    spans = find(text, (kind,))
    assert [text[span.start : span.end] for span in spans] == [what, what]
    assert redact(f"It is {what}") == f"It is <{kind}>"  # no other kind claims it


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, every in LEFT.items() for what in every])
def test_left_alone(kind: str, what: str) -> None:
    for text in (what, f"It says {what} and more; ({what})"):
        assert find(text, (kind,)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tel: 912 345 678", "Tel: <phone>"),
        ("call us at 555-1234 today", "call us at <phone> today"),
        ("手机:13812345678", "手机:<phone>"),
        ("(800) 555-2671 24 hours, ext. 5", "<phone> 24 hours, ext. 5"),
        ("415-555-2671 x123.", "<phone>."),
        ("SSN 123 45 6789", "SSN <ssn>"),
        ("social security number: 123456789", "social security number: <ssn>"),
        ("联系我们foo@bar.cn。", "联系我们<email>。"),
        ("mailto:ann@mill.org?subject=x", "mailto:<email>?subject=x"),
        ("<ann@mill.org>,'bob@mill.org'", "<<email>>,'<email>'"),
        ("ping 1.2.3.4 from 10.0.0.1", "ping <ip> from 10.0.0.1"),
        ("http://81.2.69.142:8080/", "http://<ip>:8080/"),
        ("81.2.69.142-81.2.69.160", "<ip>-<ip>"),
        ("https://ann:s3cr3t@mill.org/x", "https://<credentials>@mill.org/x"),
        ('password = "T7#kLp9$wQ2x"', 'password = "<key>"'),
        ("DB_PASSWORD=T7_kLp9-wQ2x", "DB_PASSWORD=<key>"),
        ('"client_secret": "9f8aB7c6D5e4F3a2B1c0"', '"client_secret": "<key>"'),
        (f"-----BEGIN RSA PRIVATE KEY-----\n{PEM}\nabc=\n-----END RSA PRIVATE KEY-----\nx", "<key>\nx"),
        (
            f"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A\n\n{PEM}\nand so on",
            "<key>\nand so on",
        ),
        (f'"-----BEGIN PRIVATE KEY-----\\n{PEM}\\n-----END PRIVATE KEY-----\\n"', '"<key>\\n"'),
        ("a -----BEGIN PRIVATE KEY----- line and text", "a -----BEGIN PRIVATE KEY----- line and text"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC COBADEFF", "IBAN <iban> BIC COBADEFF"),
    ],
)
def test_in_context(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "line",
    [
        "__version__ = '1.2.3.4'",
        "if version >= 1.2.3.4: pass",
        "requires pkg ~=1.2.3.4",
        "released 2024-01-02, 2023-11-30",
        "return x@W.to(device), a@b.T, self.w@v.dot(c)",
        "0 0 1 0 0 1 1 0",
        "18446744073709551615 9223372036854775807",
    ],
)
def test_code_and_numbers_hold_nothing(line: str) -> None:
    assert redact(line) == line


def test_luhn_against_known_numbers() -> None:
    # Test numbers that card networks publish, and the example of ISO/IEC 7812-1.
    for number in (b"4111111111111111", b"378282246310005", b"6011111111111117", b"79927398713"):
        assert luhn(number)
        for digit in b"0123456789":
            assert luhn(number[:-1] + bytes([digit])) == (digit == number[-1])  # exactly one check digit fits


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="@0123456789:=-([{"), max_size=200))
def test_text_without_digits_and_signs_is_never_changed(text: str) -> None:
    clean = text.encode("utf-8", "ignore").decode()
    assert redact(clean) == clean


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=" abc1.-:(+\n@é漢", max_size=60), st.sampled_from([(k, w) for k, ws in FOUND.items() for w in ws])
)
def test_a_find_between_blanks_never_survives(around: str, find_: tuple[str, str]) -> None:
    kind, what = find_
    assert what not in redact(f"{around}; {what} ;{around}", (kind,))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab1 2.3-:(+)/\n@é漢AKIA=Bx0", max_size=120))
def test_spans_are_ordered_apart_and_inside(text: str) -> None:
    spans = find(text)
    ends = [0, *(place for span in spans for place in (span.start, span.end)), len(text)]
    assert ends == sorted(ends)


def _batch(*texts: str) -> pa.RecordBatch:
    rows = [
        {
            "id": str(i),
            "text": text,
            "source": "s",
            "domain": "web",
            "language": "en",
            "license": "",
            "origin": "",
            "flags": "",
        }
        for i, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, DOCUMENTS)


def test_step_and_rules() -> None:
    config = PrivacyConfig(kinds=("email", "ip", "iban"), drop=("iban", "email"))
    step = privacy_step(config)
    whole = _batch(
        "skipped", "ann@mill.org and bob@mill.org", "", "é 81.2.69.142", "DE89370400440532013000", "+44 20 7946 0958"
    )
    batch = whole.slice(1)  # a slice: the column's buffers begin elsewhere
    result = step.apply(batch)
    assert result.schema == check_chain([step], DOCUMENTS)
    assert result["text"].to_pylist() == ["<email> and <email>", "", "é <ip>", "<iban>", "+44 20 7946 0958"]
    assert result["bytes"].to_pylist() == [len(text.encode()) for text in result["text"].to_pylist()]
    assert result["pii_email"].to_pylist() == [2, 0, 0, 0, 0]
    assert result["pii_iban"].to_pylist() == [0, 0, 0, 1, 0]
    assert "pii_phone" not in result.schema.names
    reasons = first_reasons(result, privacy_rules(config))
    assert reasons == ["privacy:email", None, None, "privacy:iban", None]
    with pytest.raises(ValueError, match="drop names card"):
        PrivacyConfig(kinds=("email",), drop=("card",))


def test_nothing_to_look_for_and_nothing_found() -> None:
    batch = _batch("ann@mill.org", "")
    assert privacy_step(PrivacyConfig(kinds=())).apply(batch)["text"].to_pylist() == ["ann@mill.org", ""]
    empty = privacy_step(PrivacyConfig()).apply(batch.slice(0, 0))
    assert empty.num_rows == 0
    assert all(f"pii_{kind}" in empty.schema.names for kind in KINDS)
