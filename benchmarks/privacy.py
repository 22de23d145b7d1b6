"""Recall, precision and speed of the personal data that gristmill finds, on real text with planted identifiers.

    python benchmarks/privacy.py [--megabytes 50] [--every 2000] [--examples 5] [PATH ...]

Identifiers of every kind are made up by their public rules (checksums, number plans, prefixes) in the ways in which
people write them, and put between the words of real documents: files or directories (.txt .md .rst .py .c .h, gzipped
ones, and Parquet tables with a column `text`); without paths, Python's own library and the machine's manual pages.

A plant is found when one find of its kind covers all of it. A find that touches no plant is counted as false, although
some are real: addresses in examples of the documents themselves. So that this means something, documents with an `@`
between letters (all that hold e-mail addresses) are left out, and `--examples` prints the false finds to be looked at.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import string
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.data.privacy import KINDS
from gristmill.data.privacy.spans import Span, find_in_column

Random = random.Random
SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".gz")
FIRST = "anna bob carlos dmitri eva fatima george hiro ines jan karin lars maria nadia olga peter quinn rosa".split()
LAST = "miller smith garcia ivanov schmidt rossi dubois tanaka kim novak jensen silva oconnor andersson".split()
NAMES = "acme north-wind blue river mill hill stone kraft nord sol luna tech data web mail".split()
TOPS = "com org net de fr co.uk io es it nl pl ru com.br co.jp edu gov info eu ch at se me dev".split()

# Forms of phone numbers: # is a digit, N one from 2 to 9, the rest as it is; behind @ the label that a form needs.
PHONES = [
    form.lstrip()
    for form in """
    +1 (N#9) N#9-#### | (N#9) N#9-#### | N#9-N#9-#### | N#9.N#9.#### | 1-N#9-N#9-#### | +1N#9N#9#### |
    +1 N#9 N#9 #### | N#9 N#9 ####@Phone:  | +44 20 N### #### | 020 N### #### | +44 (0)161 N## #### |
    07700 9##### | 01632 9##### | +49 30 N####### | +49 (0)89 N###### | +49-151-N####### | 0151 N####### |
    030/N####### | 0049 221 N###### | (089) N###### | 040 / N#### ##@Tel.  | +33 1 N# ## ## ## | 01 N# ## ## ## |
    06.N#.##.##.## | +336######## | 0033 1 N# ## ## ## | +34 9## ### ### | 9## ### ###@Teléfono:  |
    91 N## ## ##@Tel:  | +39 06 N### #### | +39 333 N###### | 06 N### ####@telefono  | +31 6 N####### |
    06-N####### | 020-N###### | +46 70 N## ## ## | 08-N## ### ## | +45 N# ## ## ## | N# ## ## ##@Tlf.  |
    +47 N## ## ### | +358 40 N###### | +48 6## ### ### | 6## ### ###@tel.  | +420 6## ### ### |
    +7 495 N##-##-## | 8 (495) N##-##-## | 8-800-N##-##-## | +380 44 N## ## ## | +90 212 N## ## ## |
    0212 N## ## ## | +86 138 N### #### | 138N#######@手机: | +81 3-N###-#### | 03-N###-#### | 090-N###-#### |
    +82 10-N###-#### | 010-N###-#### | +91 98### ##### | 98### #####@Mobile:  | +55 11 98###-#### |
    (11) 98###-#### | (21) 3###-#### | +52 55 N### #### | +61 2 N### #### | 0412 N## ### | (02) N### #### |
    +353 1 N## #### | +41 44 N## ## ## | 044 N## ## ## | +971 50 N## #### | +65 N### #### | +27 11 N## #### |
    N##-####@call us at  | +1-N#9-N#9-#### ext. 12
""".replace(" | ", "|")
    .replace(" |\n", "|")
    .strip()
    .split("|")
]
CARDS = {16: "4 51 54 2221 2720 6011 65 3530 62", 15: "34 37", 14: "36"}  # first digits by length
IBANS = (  # country and what follows its check digits: # is a digit, A a letter
    "DE################## GBAAAA############## FR##########A############ NLAAAA########## ES#################### "
    "ITA###################### CH################# AT################ BE############ PL######################## "
    "NO########### SE#################### MTAAAA####################### TR###################### "
    "SA#################### AE################### UA######################### BR#######################A#"
).split()
PEM = "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----"


def digits(r: Random, n: int) -> str:
    return "".join(r.choices(string.digits, k=n))


def mixed(r: Random, n: int, extra: str = "") -> str:
    return "".join(r.choices(string.ascii_letters + string.digits + extra, k=n))


def email(r: Random) -> tuple[str, str, str]:
    first, last = r.choice(FIRST), r.choice(LAST)
    local = r.choice(
        [
            f"{first}.{last}",
            f"{first[0]}{last}",
            f"{first}_{last}{digits(r, 2)}",
            f"{last}+{r.choice(NAMES)}",
            first,
            f"{first}-{last}",
        ]
    )
    host = f"{r.choice(NAMES)}{r.choice(['', '-' + r.choice(NAMES), digits(r, 2)])}.{r.choice(TOPS)}"
    host = r.choice(["", "", "mail.", "cs."]) + host
    if r.random() < 0.1:
        at, dot = r.choice([(" (at) ", "."), ("[at]", "[dot]"), (" [at] ", " [dot] "), ("(at)", " (dot) ")])
        return "", local + at + host.replace(".", dot), ""
    local = local.upper() if r.random() < 0.05 else local
    before, after = r.choice(
        [
            ("", ""),
            ("<", ">"),
            ("mailto:", ""),
            ("(", ")"),
            ("e-mail: ", "."),
            ('"email": "', '",'),
            ("email=", "&x=1"),
            ("", ","),
        ]
    )
    return before, f"{local}@{host}", after


def phone(r: Random) -> tuple[str, str, str]:
    form, at, label = r.choice(PHONES).partition("@")
    text = "".join(r.choice("23456789") if c == "N" else digits(r, 1) if c == "#" else c for c in form)
    if not at:
        label = r.choice(["", "", "Tel: ", "(", "call ", "phone=", "\u260e "])
    return label, text, ")" if label == "(" else r.choice(["", ",", "."])


def ip(r: Random) -> tuple[str, str, str]:
    before, after = r.choice(
        [
            ("", ""),
            ("from ", ":443"),
            ("http://", "/index"),
            ("[", "]"),
            ("ip=", ";"),
            ("host ", ","),
            ("", " - - [01/Jan"),
        ]
    )
    if r.random() < 0.3:
        head = r.choice(["2a00:1450", "2600:1f18", "2001:41d0", "2400:cb00", "2a03:2880"])
        groups = [f"{r.randrange(1, 65536):x}" for _ in range(6)]
        text = r.choice(
            [f"{head}:{':'.join(groups)}", f"{head}::{groups[0]}", f"{head}:{groups[0]}::{groups[1]}:{groups[2]}"]
        )
        return r.choice([("", text, ""), ("[", text, "]:443"), ("addr: ", text, ",")])
    while True:
        a, b, c, d = r.randrange(1, 224), r.randrange(256), r.randrange(256), r.randrange(1, 255)
        private = a in (10, 127) or (a, b) in (
            (192, 168),
            (169, 254),
            (198, 18),
            (198, 19),
            (198, 51),
            (203, 0),
            (192, 0),
            (192, 88),
        )
        if not private and not (a == 172 and 16 <= b < 32) and not (a == 100 and 64 <= b < 128):
            return before, f"{a}.{b}.{c}.{d}", after


def luhn_digit(number: str) -> str:
    total = 0
    for i, c in enumerate(reversed(number)):
        d = int(c) * (2 if i % 2 == 0 else 1)
        total += d - 9 if d > 9 else d
    return str(-total % 10)


def card(r: Random) -> tuple[str, str, str]:
    length, prefix = r.choice([(length, prefix) for length, prefixes in CARDS.items() for prefix in prefixes.split()])
    body = prefix + digits(r, length - len(prefix) - 1)
    number = body + luhn_digit(body)
    sign = r.choice(["", " ", "-"])
    if sign:
        cuts = {14: (4, 10), 15: (4, 10), 16: (4, 8, 12)}[len(number)]
        number = sign.join(number[a:b] for a, b in zip((0, *cuts), (*cuts, len(number)), strict=True))
    return r.choice(
        [("card ", number, ""), ("", number, " exp 12/27"), ('"pan": "', number, '"'), ("Visa: ", number, ".")]
    )


def ssn(r: Random) -> tuple[str, str, str]:
    area, group, serial = (
        r.choice([r.randrange(1, 666), r.randrange(667, 900)]),
        r.randrange(1, 100),
        r.randrange(1, 10000),
    )
    sign = r.choice(["-", "-", "-", " ", ""])
    label = (
        r.choice(["SSN: ", "social security number ", "SSN "])
        if sign != "-"
        else r.choice(["", "SSN ", '"ssn": "', "("])
    )
    return label, f"{area:03}{sign}{group:02}{sign}{serial:04}", r.choice(["", ",", "."])


def iban(r: Random) -> tuple[str, str, str]:
    form = r.choice(IBANS)
    country = form[:2]
    body = "".join(r.choice(string.ascii_uppercase) if c == "A" else digits(r, 1) for c in form[2:])
    check = 98 - int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    number = f"{country}{check:02}{body}"
    if r.random() < 0.6:
        number = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    return r.choice([("IBAN ", number, ""), ("", number, ","), ("account: ", number, "."), ('"', number, '"')])


def key(r: Random) -> tuple[str, str, str]:
    url = string.ascii_letters + string.digits + "-_"
    base = "eyJ" + "".join(r.choices(url, k=30))
    tokens: list[Callable[[], str]] = [
        lambda: "AKIA" + "".join(r.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=16)),
        lambda: r.choice(["ghp_", "gho_", "ghs_"]) + mixed(r, 36),
        lambda: f"github_pat_{mixed(r, 22)}_{mixed(r, 59)}",
        lambda: "glpat-" + mixed(r, 20),
        lambda: f"xoxb-{digits(r, 12)}-{digits(r, 12)}-{mixed(r, 24)}",
        lambda: r.choice(["sk_live_", "rk_live_"]) + mixed(r, 24),
        lambda: "AIza" + mixed(r, 35, "-_"),
        lambda: "sk-" + mixed(r, 48),
        lambda: "sk-proj-" + mixed(r, 80, "-_"),
        lambda: "sk-ant-api03-" + mixed(r, 86, "-_") + "AA",
        lambda: "hf_" + "".join(r.choices(string.ascii_letters, k=34)),
        lambda: f"{base}.eyJ{mixed(r, 60)}.{mixed(r, 43, '-_')}",
        lambda: "npm_" + mixed(r, 36),
        lambda: "pypi-AgEIcHlwaS5vcmc" + mixed(r, 120, "-_"),
        lambda: f"SG.{mixed(r, 22, '-_')}.{mixed(r, 43, '-_')}",
        lambda: PEM.format("\n".join(mixed(r, 64, "+/") for _ in range(5))),
    ]  # fmt: skip
    if r.random() < 0.6:
        before, after = r.choice(
            [("", ""), ('token = "', '"'), ("export KEY=", ""), ("Authorization: Bearer ", ""), ("(", ")")]
        )
        return before, r.choice(tokens)(), after
    word = r.choice(["Winter", "Sommer", "Tiger", "qwerty", "Blue"])
    password = r.choice(
        [
            f"{word}#{digits(r, 3)}{mixed(r, 3)}x",
            mixed(r, 8) + "aQ7!",
            f"{word}-{r.choice(['moon', 'sun'])}-{digits(r, 4)}!",
        ]
    )
    secret = r.choice([mixed(r, 24) + "7x4", "".join(r.choices("0123456789abcdef", k=40)), mixed(r, 38, "+/") + "1a9="])
    name = r.choice(["password", "DB_PASSWORD", "passwd", "userPassword"]), password
    other = (
        r.choice(["client_secret", "API_KEY", "apiKey", "access_token", "secret", "SECRET_KEY", "auth_token"]),
        secret,
    )
    what, value = r.choice([name, other])
    quote = r.choice(['"', "'"])
    return r.choice(
        [
            (f"{what} = {quote}", value, quote),
            (f"{what}: ", value, ""),
            (f"{what}=", value, ""),
            (f'"{what}": "', value, '",'),
        ]
    )


def credentials(r: Random) -> tuple[str, str, str]:
    scheme = r.choice(["https", "http", "ftp", "postgres", "mysql", "mongodb+srv", "redis", "amqp"])
    host = f"{r.choice(NAMES)}.{r.choice(TOPS)}"
    password = r.choice(
        [
            mixed(r, 10),
            f"{r.choice(LAST)}{digits(r, 3)}",
            mixed(r, 8) + "%40" + digits(r, 2),
            mixed(r, 6) + "!" + digits(r, 3),
        ]
    )
    return f"{scheme}://", f"{r.choice(FIRST)}:{password}", f"@{host}/{r.choice(['', 'db', 'path/x'])}"


MAKERS = {
    "email": email,
    "phone": phone,
    "ip": ip,
    "card": card,
    "ssn": ssn,
    "iban": iban,
    "key": key,
    "credentials": credentials,
}


def documents(paths: list[Path]) -> Iterator[str]:
    """Texts without e-mail addresses, in a fixed order."""
    files = sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    for file in files:
        if file.suffix == ".parquet":
            texts = (
                text
                for batch in pq.ParquetFile(file).iter_batches(columns=["text"])
                for text in batch["text"].to_pylist()
            )
        elif file.suffix in SUFFIXES and file.stat().st_size < 1 << 20:
            raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            texts = iter([raw.decode("utf-8", "ignore")])
        else:
            continue
        yield from (text for text in texts if len(text) > 500 and re.search(r"\w@\w|\(at\)|\[at\]", text) is None)


def plant(text: str, r: Random, every: int) -> tuple[str, list[tuple[str, int, int]]]:
    """The text with identifiers put between its words, and (kind, start, end) of each in bytes."""
    places = [match.start() for match in re.finditer(r"(?<=[^\s]) (?=[A-Za-z])", text)]
    wanted = min(len(places), max(1, len(text) // every))
    parts: list[bytes] = []
    planted: list[tuple[str, int, int]] = []
    size = end = 0
    for place in sorted(r.sample(places, wanted)):
        kind = r.choice(KINDS)
        before, what, after = MAKERS[kind](r)
        prefix = (text[end:place] + r.choice([" ", " ", "\n"]) + before).encode()
        parts += [prefix, what.encode(), after.encode()]
        planted.append((kind, size + len(prefix), size + len(prefix) + len(what.encode())))
        size, end = size + sum(map(len, parts[-3:])), place
    return b"".join([*parts, text[end:].encode()]).decode(), planted


@dataclass
class Tally:
    """What was planted, found and found wrongly, by kind; and examples of what went wrong."""

    planted: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, bytes]] = field(default_factory=list)

    def add(self, document: str, plants: list[tuple[str, int, int]], spans: list[Span]) -> None:
        data = document.encode()
        for kind, start, end in plants:
            self.planted[kind] += 1
            if any(span.kind == kind and span.start <= start and end <= span.end for span in spans):
                self.found[kind] += 1
            else:
                self.examples.append((kind, "missed", data[max(0, start - 30) : end + 15]))
        for span in spans:
            if not any(span.start < end and start < span.end for _, start, end in plants):
                self.false[span.kind] += 1
                self.examples.append((span.kind, "false", data[max(0, span.start - 30) : span.end + 15]))

    def row(self, name: str, kinds: Iterable[str]) -> str:
        planted, found, false = (sum(c[k] for k in kinds) for c in (self.planted, self.found, self.false))
        precision = found / max(1, found + false)
        return f"{name:12} {planted:8} {found / max(1, planted):8.4f} {false:12} {precision:10.4f}"


def timed_find(text: str) -> tuple[list[Span], float]:
    started = time.process_time()
    spans = find_in_column(pa.array([text]), KINDS).get(0, [])
    return spans, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=float, default=50, help="how much text is used")
    parser.add_argument("--every", type=int, default=2000, help="characters of text for each identifier")
    parser.add_argument("--examples", type=int, default=0, help="false and missed finds to print for each kind")
    given = parser.parse_args()
    timed_find("a@b.de")  # the kernel is compiled here
    r = Random(0)
    tally = Tally()
    size, plain_seconds, planted_seconds = 0, 0.0, 0.0
    for text in documents(given.paths or [Path(sysconfig.get_path("stdlib")), Path("/usr/share/man")]):
        if size > given.megabytes * 1e6:
            break
        size += len(text.encode())
        plain_seconds += timed_find(text)[1]
        document, plants = plant(text, r, given.every)
        spans, seconds = timed_find(document)
        planted_seconds += seconds
        tally.add(document, plants, spans)
    megabytes = size / 1e6
    print(f"{megabytes:.1f} MB; MB per CPU-second: {megabytes / plain_seconds:.0f} as it is, ", end="")
    print(f"{megabytes / planted_seconds:.0f} with an identifier every {given.every} characters")
    print(f"{'kind':12} {'planted':>8} {'recall':>8} {'not planted':>12} {'precision':>10}")
    for kind in KINDS:
        print(tally.row(kind, (kind,)))
    print(tally.row("all", KINDS))
    shown: Counter[tuple[str, str]] = Counter()
    for kind, what, context in tally.examples:
        shown[kind, what] += 1
        if shown[kind, what] <= given.examples:
            print(f"{what:7}{kind:12}{context.decode('utf-8', 'replace')!r}")


if __name__ == "__main__":
    main()
