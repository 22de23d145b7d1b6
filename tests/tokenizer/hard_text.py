"""Text that is hard to tokenize, for every test of ids: by its script, its white space, its lengths, its brokenness.

`HARD_TEXTS` is a list of such texts, by what is hard about them in `BY_KIND`; `hard_text()` is a hypothesis strategy
that mixes their pieces; `every_character()` gives all of Unicode in a few contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hypothesis import strategies as st

WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
ALMOST_SPACE = "\x1c\x1d\x1e\x1f\u180e\u200b\u200c\u200d\u2060\ufeff"  # Python, JavaScript or old Unicodes call some so

BY_KIND: dict[str, list[str]] = {
    "blank": ["", " ", "  ", "\n", "\r\n", "\t", " \n", "\n ", " \n ", "\u3000", WHITE_SPACE, ALMOST_SPACE],
    "plain": [
        "plain words, and more of them",
        "  leading,   inner and trailing   ",
        "The quick brown fox jumps over the lazy dog. " * 4,
        "end.Next;no space(here)and\"there\" -- e.g. 'quoted', `code` & [so] {on}… – — “x” ‹y› ¿Qué? ¡No!",
    ],
    "lines": [
        "line\n\n\nline\r\n\tline \n",
        "a\r\n\r\nb\rc\n\rd \r\n e\n \n f \n\n  g\t\n\t\nh\n",
        "one\x0btwo\x0cthree\x85four\u2028five\u2029six",
        "...\n\n...\r\r!\n ?\n",
        " \n \n x\n\n  \n   y  \n  ",
    ],
    "apostrophes": [
        "Don't they'LL I've 'sblood it'sfoo O'Reilly's",
        "I'm I'M we're WE'RE he'd HE'D you've YOU'VE she'll SHE'Ll it's IT'S can't CAN'T 'tis 'twas '' ''' 's's's",
        "it'ſ IT'ſ x'ſt 'ſ '\u017f's \u2019s l\u2019eau 'ST 'rE 'Ve 'lL 'r 'v 'l 'e ' 'x 'é '1",
        "'i 'I 'ı 'İ 'ß 'ŉ ŉs 'K 'ﬆ 'ﬀ",
    ],
    "digits": [
        "1234567 3.14159 0x1F 12,345,678 1e-9 007 99",
        "a1b22c333d4444e55555 1 12 123 1234 -5 +6 $7.00 8% 9°",
        "١٢٣٤٥ ۱۲۳۴ १२३४ ๑๒๓๔ １２３４５ 𝟏𝟐𝟑𝟒 𞥐𞥑𞥒 \U00011de0\U00011de1 1\U00011de12",
        "²³¹ ½⅓¾ ⅧⅨ ⅻ ①②③ 一二三 〇 ㊿ ৴ ൰ 𐄇 𒐀",
        "  1  22   333 \n1 \t2\u30003",
    ],
    "code": [
        "def f(x):\n    return {'a': x[0] != None}  # done\n\n\tif x:\n\t\tpass\n",
        "for (int i = 0; i < n; ++i) {\r\n\t\ta[i] += b[i] << 2; // x->y\r\n\t}\r\n}\r\n",
        "<div class=\"a b\" id='c'>&nbsp;&amp;<br/></div><!-- x --><script>var $x=/\\d+/g;</script>",
        "https://example.org/a_b-c/d.e?f=g&h=%20#i user@host.example C:\\dir\\file.txt ~/x/*.py $PATH ${A:-b}",
        "SELECT * FROM t WHERE a='it''s' AND b<>1;--x\nHTTPServer2XMLparser snake_case __init__ kebab-case",
        "                    deep\n                        deeper\n\t\t\t\t\t\t\t\ttabs\n",
        "∑_{i=1}^{n} x_i² ≠ ∞ ⇒ \\frac{a}{b} \\alpha\n$$E=mc^2$$ αβγ ∂f/∂x",
    ],
    "latin": [
        "naïve café e\u0301 cafe\u0301s İstanbul ISPARTA ıspanak straße STRASSE ſ K Å Å ﬁn ﬂag ǅ ǆ Ǆ",
        "Z\u0351\u036b\u0343a\u0321\u0322l\u0315\u0301\u0300g\u0338\u0489o \u0301lone \u0301\u0302",
        "a\u20dd 1\u20e3 *\ufe0f\u20e3",
        "Tiếng Việt: Nguyễn Đình ở Huế; Íslenska þjóðin; čeština řeka; Łódź; Ţ Ț Ğ ğ",
    ],
    "greek and cyrillic": [
        "Ὀδυσσεύς Σίσυφος ΣΊΣΥΦΟΣ μὴ οὔ",
        "Съешь ещё этих мягких французских булок, да выпей же чаю. Й й Ѝ",
    ],
    "right to left": [
        "מה נשמע? שָׁלוֹם עֲלֵיכֶם 123 abc",
        "مرحبا بالعالم ، الْعَرَبِيَّةُ ﷺ ﻻ لا 2024م",
        "\u200fabc\u200e \u202eevil\u202c \u2067x\u2069 פּ וּ",
    ],
    "indic and thai": [
        "नमस्ते दुनिया क्षत्रिय क\u094d\u200dष", "வணக்கம் தமிழ் ஸ்ரீ",
        "สวัสดีชาวโลก ก็ น้ำ กำ", "မြန်မာ ខ្មែរ བོད་ཡིག ལ་",
    ],
    "chinese and japanese": [
        "日本語の文章です。你好，世界！「引用」『二重』（注）",
        "ﾊﾝｶｸ ｶﾞ ガ カ\u3099 か\u309a 葛󠄀 辻󠄁 々〆ヶ ー〜 ㍿ 𠮷野家 𩸽",
        "第1章　全角空白　と２つ目\n\n　　段落",
    ],
    "korean": ["한국어 문장입니다. 각 가\u11a8 한", "ㄱㅏㄴ ㅋㅋㅋ ﾡ 힣\ud7b0\ud7cb"],
    "emoji": [
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭 🇺🇳🇫🇷🇩🇪 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "👨🏿‍💻👩🏻‍🚀🤷🏽‍♀️ ❤️ ❤ ☺︎ ☺️ #️⃣ 1️⃣ *️⃣ ©️ ™ 🫠🫡🪿 a👍b👍 👍 👍\n👍's",
    ],
    "controls": [
        "nul\x00 bell\x07 unit\x1c\x1d\x1e\x1f sep\x85nel\xa0nbsp\u2003em\u3000ideo\u180emongol\ufeffbom",
        "".join(map(chr, range(0x20))) + "x" + "".join(map(chr, range(0x7F, 0xA1))),
        "\x00", "\x00\x00\x00", "a\x00", "a\x00\x00", "\x00a", " \x00 \x00",
        "\u200b\u200e\u202e\ufffd\U000f0000\U0010ffff\ufdd0\uffff\ue000",
    ],
    "broken": [
        b"caf\xe9 \xff\xfe \xc3( \xe2\x82 \xf0\x9f\x98 end".decode("utf-8", "replace"),
        b"\x80\x81\xbf \xed\xa0\x80 \xc0\xaf \xf5\x80\x80\x80".decode("utf-8", "replace"),
        "\ufffd" * 40 + " \ufffd\ufffd's",
    ],
    "long": [
        "a" * 300 + "-" * 100 + " " * 50 + "é" * 40,
        "ab" * 400, "aab" * 100 + "aba" * 100, " " * 700, " " * 257 + "x", "\n" * 300, "\r\n" * 150, " \n" * 200,
        "=" * 255 + "\n", "=" * 256 + " ", "-" * 1000, "1" * 301, "漢" * 200, "🙂" * 120, "\u0301" * 130, "\x00" * 90,
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze" * 8, "ACGT" * 300, "xX" * 127, "'s" * 99, "\t" * 97 + "}",
    ],
    "lengths": [*("x" * n + " " + "y" * n for n in (7, 8, 9, 15, 16, 17, 95, 96, 97))],
    "special tokens": [
        "<|im_start|>assistant\n<|im_end|> <|bos|><|eos|><|pad|> <|im_end",
        "<s></s><unk><pad>[INST] [/INST] <|endoftext|><|begin_of_text|><|start_header_id|>user<|end_header_id|>",
    ],
}  # fmt: skip

HARD_TEXTS: list[str] = [text for texts in BY_KIND.values() for text in texts]

_AT_ONCE = 1 << 14
_PIECES = sorted({piece for text in HARD_TEXTS for piece in text.split(" ") if len(piece) < 40})
_SNIPPETS = [
    "'s", "'S", "'ſ", "'ll", "'LL", "'re", "'v", "'", "\u2019", " ", "  ", "\n", "\r\n", "\r", "\t",
    " \n", "\n\n", "\xa0", "\u3000", "\u2028", "\x85", "\x00", "a", "A", "the", " of", "ſ", "é",
    "e\u0301", "\u0301", "1", "22", "333", "²", "Ⅷ", "١", "\U00011de0", ".", "...", "_", "--", "<|",
    "|>", "漢", "字", "。", "가", "ᄀ", "ش", "א", "क\u094d", "🙂", "\u200d", "\ufe0f", "🇨", "\U000e0001",
    "\ufffd", "\U0010ffff", "aaaaaaaa", "abababab", "        ",
]  # fmt: skip


def hard_text(max_pieces: int = 24) -> st.SearchStrategy[str]:
    """Texts put together of hard pieces, of any characters, or of few different ones."""
    pieces = st.one_of(st.sampled_from(_SNIPPETS), st.sampled_from(_PIECES), st.text(max_size=4))
    few = st.lists(st.sampled_from(["a", "b", " ", "\n", "'", "1"]), max_size=3 * max_pieces)
    runs = st.tuples(st.sampled_from(_SNIPPETS), st.integers(1, 40)).map(lambda run: [run[0] * run[1]])
    return st.one_of(st.lists(pieces, max_size=max_pieces), few, runs).map("".join)


def every_character(context: Callable[[str], str], codes: Sequence[int] = range(0x110000)) -> Iterator[str]:
    """All code points but surrogates, each in its context, as texts of a few thousand of them."""
    for start in range(0, len(codes), _AT_ONCE):
        yield "".join(context(chr(code)) for code in codes[start : start + _AT_ONCE] if not 0xD800 <= code < 0xE000)
