"""What the LaTeX reader knows by name: symbols, accents, commands with arguments that are no prose, environments."""

from __future__ import annotations

# Commands that stand for a character or a few.
SYMBOLS = {
    "AA": "Å", "AE": "Æ", "BibTeX": "BibTeX", "DH": "Ð", "L": "Ł", "LaTeX": "LaTeX", "LaTeXe": "LaTeX2e", "O": "Ø",
    "OE": "Œ", "P": "¶", "S": "§", "SS": "ẞ", "TH": "Þ", "TeX": "TeX", "aa": "å", "ae": "æ", "and": "; ",
    "backslash": "\\", "bullet": "•", "cdots": "…", "copyright": "©", "dag": "†", "ddag": "‡", "dh": "ð", "dj": "đ",
    "DJ": "Đ", "dots": "…", "enspace": " ", "euro": "€", "guillemotleft": "«", "guillemotright": "»", "flqq": "«",
    "frqq": "»", "glqq": "„", "grqq": "“", "hfill": " ", "hskip": " ", "i": "ı", "j": "ȷ", "l": "ł", "lbrack": "[",
    "ldots": "…", "lq": "‘", "ng": "ŋ", "newline": "\n", "o": "ø", "oe": "œ", "par": "\n\n", "pounds": "£",
    "qquad": " ", "quad": " ", "quotedblbase": "„", "rbrack": "]", "rq": "’", "slash": "/", "space": " ", "ss": "ß",
    "textasciicircum": "^", "textasciitilde": "~", "textasteriskcentered": "*", "textbackslash": "\\", "textbar": "|",
    "textbraceleft": "{", "textbraceright": "}", "textbullet": "•", "textcopyright": "©", "textdegree": "°",
    "textdollar": "$", "textellipsis": "…", "textemdash": "—", "textendash": "–", "texteuro": "€",
    "textexclamdown": "¡", "textgreater": ">", "textless": "<", "textmu": "µ", "textnumero": "№", "textpm": "±",
    "textquestiondown": "¿", "textquotedblleft": "“", "textquotedblright": "”", "textquoteleft": "‘",
    "textquoteright": "’", "textregistered": "®", "textsection": "§", "textsterling": "£", "texttimes": "×",
    "texttrademark": "™", "textunderscore": "_", "th": "þ", "thinspace": " ", "ie": "i.e.", "eg": "e.g.",
    "xspace": "", "nobreakspace": " ", "linebreak": "\n", "smallskip": "\n\n", "medskip": "\n\n", "bigskip": "\n\n",
    "tableofcontents": "\n\n", "maketitle": "\n\n", "clearpage": "\n\n", "newpage": "\n\n", "cleardoublepage": "\n\n",
    "pagebreak": "\n\n", "qedhere": "", "endgraf": "\n\n", "tabularnewline": "\n", "hline": "", "item": "",
}  # fmt: skip
# A backslash and one character that is no letter.
PUNCTUATION = {
    "\\": "\n", ",": " ", ";": " ", ":": " ", "!": "", " ": " ", "\n": " ", "\t": " ", "-": "", "/": "", "@": "",
    "&": "&", "%": "%", "$": "$", "#": "#", "_": "_", "{": "{", "}": "}", ">": " ", "<": "", "*": "", "|": "‖",
    "(": "", ")": "", "[": "", "]": "",
}  # fmt: skip
# Combining characters of the accent commands; the letter follows, in braces or not.
ACCENTS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307",
    '"': "\u0308", "r": "\u030a", "H": "\u030b", "v": "\u030c", "c": "\u0327", "k": "\u0328", "d": "\u0323",
    "b": "\u0331", "t": "\u0361",
}  # fmt: skip
# Commands whose first so many arguments in braces are no prose; what follows them is.
SKIPPED_ARGUMENTS = {
    "DeclareGraphicsExtensions": 1, "Hy@raisedlink": 1, "IfFileExists": 1, "RequirePackage": 1, "acknowledgments": 0,
    "addcontentsline": 3, "addtocontents": 2, "addtocounter": 2, "addtolength": 2, "affil": 1, "affiliation": 1,
    "address": 1, "author": 1, "authorrunning": 1, "backmatter": 0, "bibitem": 1, "bibliography": 1,
    "bibliographystyle": 1, "captionsetup": 1, "cline": 1, "cmidrule": 1, "color": 1, "colorbox": 1,
    "correspondingauthor": 1, "curraddr": 1, "date": 1, "dedicatory": 1, "definecolor": 3, "documentclass": 1,
    "email": 1, "fancyfoot": 1, "fancyhead": 1, "fontsize": 2, "foreignlanguage": 1, "geometry": 1, "graphicspath": 1,
    "hyperlink": 1, "hyperref": 0, "hypersetup": 1, "hypertarget": 1, "hyphenation": 1, "hspace": 1, "include": 1,
    "includegraphics": 1, "includepdf": 1, "index": 1, "input": 1, "institute": 1, "keywords": 0, "lhead": 1,
    "lstinputlisting": 1, "lstset": 1, "makebox": 0, "markboth": 2, "markright": 1, "multicolumn": 2, "multirow": 2,
    "newcounter": 1, "newlength": 1, "newtheorem": 2, "orcid": 1, "pagenumbering": 1, "pagestyle": 1, "parbox": 1,
    "pdfbookmark": 2, "phantom": 1, "hphantom": 1, "vphantom": 1, "printbibliography": 0, "raisebox": 1,
    "resizebox": 2, "rhead": 1, "rotatebox": 1, "rule": 2, "runningauthor": 1, "scalebox": 1, "selectlanguage": 1,
    "setcounter": 2, "setlength": 2, "sisetup": 1, "stepcounter": 1, "refstepcounter": 1, "subjclass": 1,
    "textcolor": 1, "thanks": 1, "theoremstyle": 1, "thispagestyle": 1, "tikzset": 1, "titlerunning": 1,
    "titleformat": 5, "titlespacing": 4, "urladdr": 1, "urlstyle": 1, "usepackage": 1, "usetikzlibrary": 1,
    "vspace": 1, "href": 1, "newblock": 0, "enlargethispage": 1, "usetheme": 1, "pgfplotsset": 1, "numberwithin": 2,
    "DeclareMathOperator": 2, "setkeys": 2, "bstctlcite": 1, "nocite": 1, "subfile": 1, "import": 2,
    "externaldocument": 1, "crefname": 3, "Crefname": 3, "tag": 1, "todo": 1, "marginpar": 1, "footnotetext": 1,
    "vskip": 0,
}  # fmt: skip
REFERENCES = frozenset(
    {"Autoref", "Cref", "autoref", "cref", "crefrange", "eqref", "nameref", "pageref", "ref", "vref", "subref"}
)
# Level of a heading, as the number of `#` before it.
HEADINGS = {
    "part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4, "paragraph": 5, "subparagraph": 6,
    "frametitle": 3,
}  # fmt: skip
VERBATIM = ("verbatim", "Verbatim", "BVerbatim", "lstlisting", "minted", "alltt", "verbatimtab", "codeblock")
MATH = frozenset(
    "equation align gather multline eqnarray displaymath math flalign alignat dmath dgroup subequations".split()
)
# Environments that hold no prose, and so go with all that is in them.
SWALLOWED = frozenset(
    "CCSXML IEEEbiography comment filecontents forest pgfpicture pgfplots picture pspicture psmatrix scope "
    "thebibliography tikzcd tikzpicture asy feynman".split()
)
# Environments whose first arguments in braces are no prose.
ENVIRONMENT_ARGUMENTS = {
    "tabular": 1, "array": 1, "longtable": 1, "supertabular": 1, "tabularx": 2, "tabulary": 2, "minipage": 1,
    "multicols": 1,
    "wrapfigure": 2, "wraptable": 2, "adjustwidth": 2, "list": 2, "spacing": 1, "subfigure": 1, "adjustbox": 1,
    "tblr": 1, "otherlanguage": 1, "column": 1, "algorithmic": 0, "textblock": 1, "IEEEeqnarray": 1, "tabu": 1,
}  # fmt: skip
TABLES = frozenset("tabular tabularx tabulary longtable supertabular array tblr tabu".split())
THEOREMS = {
    "theorem": "Theorem", "thm": "Theorem", "lemma": "Lemma", "lem": "Lemma", "proposition": "Proposition",
    "prop": "Proposition", "corollary": "Corollary", "cor": "Corollary", "definition": "Definition",
    "defn": "Definition", "definitions": "Definition", "remark": "Remark", "rem": "Remark", "remarks": "Remarks",
    "example": "Example", "conjecture": "Conjecture", "claim": "Claim", "exercise": "Exercise", "problem": "Problem",
    "question": "Question", "assumption": "Assumption", "fact": "Fact", "observation": "Observation",
    "notation": "Notation", "axiom": "Axiom", "proof": "Proof",
}  # fmt: skip
