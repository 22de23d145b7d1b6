"""LaTeX sources."""

from __future__ import annotations

import io

import pytest

from gristmill.data.collect.formats import latex
from gristmill.data.collect.formats.base import BadInput
from gristmill.data.collect.formats.latex_macros import Expander, collect_macros


def text_of(source: str, files: dict[str, str] | None = None, preamble: str = "", parts: bool = False) -> str:
    whole = source if parts or "\\documentclass" in source else rf"{preamble}\begin{{document}}{source}\end{{document}}"
    found = {name: text.encode() for name, text in (files or {}).items()}
    (document,) = latex.read(io.BytesIO(whole.encode()), "main.tex", found.get, parts)
    return document.text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"A {\it presheaf of} \textbf{sets \emph{on} $\mathcal{C}$}.", r"A presheaf of sets on $\mathcal{C}$."),
        ("one\nline\n\nnext % gone\nline 5\\% more%\n  on\n% whole line\nend", "one line\n\nnext line 5% moreon end"),
        (r"\'etale, Sch\"{o}n, \c{c}a, \v Z, Erd\H{o}s, na\"\i ve, \ss, \AA ngstr\"om, Bj\o rn",
         "étale, Schön, ça, Ž, Erdős, naïve, ß, Ångström, Bjørn"),
        (r"``quoted'' -- dash --- ~tie \& 50\$ \{x\} \LaTeX{} x\_y", "“quoted” – dash — tie & 50$ {x} LaTeX x_y"),
        (r"\section{The \emph{big} one}\label{s} Text. \subsection*{Sub} More.",
         "## 1 The big one\n\nText.\n\n### Sub\n\nMore."),
        (r"Before~\cite{a,b}. See~\cite[Ch.~2]{c}, and \citet{a} says.", "Before. See [1], and [2] says."),
        (r"As \footnote{A \textit{note}.}seen.\index{x}\vspace{2em} \includegraphics[width=\textwidth]{f.png}",
         "As (A note.)seen."),
        ("\\begin{itemize}\n\\item one\n\\item two\n\\begin{enumerate}\n\\item a\n\\item[(b)] c\n\\end{enumerate}\n"
         "\\end{itemize}", "- one\n- two\n\n  1. a\n  (b) c"),
        ("\\begin{figure}[h]\\centering\\includegraphics{a}\\caption[short]{The mill.}\\label{f}\\end{figure}\n"
         "In Figure~\\ref{f} and \\autoref{f}.", "Figure 1: The mill.\n\nIn Figure 1 and Figure 1."),
        ("\\begin{tabular}{l|l}\\hline a & b \\\\ \\hline c & d \\\\[2pt] \\end{tabular}", "a | b\nc | d"),
        ("\\begin{verbatim}\n\\def\\x{%}\n\\end{verbatim} and \\verb|$%\\|", "```\n\\def\\x{%}\n```\n\nand $%\\"),
        (r"\href{http://x.org}{a page} \url{http://y.org/~z}", "a page http://y.org/ z"),
        ("We have\n\\begin{equation}\\label{e} a\n= b \\end{equation}\nby (\\ref{e}) and \\eqref{e}, $$x$$ so",
         "We have\n\\begin{equation}\\tag{1} a\n= b \\end{equation}\nby (1) and (1),\n$$x$$\nso"),
        (r"\(a_1\) and \[b\] and $a", "$a_1$ and\n\\[b\\]\nand $a"),
        ("a \\iffalse hidden \\fi b \\begin{comment} $ \\end{comment} c \\begin{tikzpicture} x \\end{tikzpicture} d",
         "a b c d"),
        (r"\begin{thebibliography}{9}\bibitem{a} B.\end{thebibliography}\bibliography{refs} end", "end"),
        ("\\begin{abstract}Short.\\end{abstract}\\appendix\\section{Proofs}\\label{p} See \\cref{p}.",
         "## Abstract\n\nShort.\n\n## A Proofs\n\nSee Appendix A."),
    ],
)  # fmt: skip
def test_body(source: str, text: str) -> None:
    assert text_of(source) == text


def test_statements_and_references() -> None:
    source = r"""\section{S}
\begin{lem}[Zorn]\label{z}
Every chain.
\end{lem}
\begin{proof}[Proof of Lemma \ref{z}]
By \textbf{choice}, see Chapter \ref{elsewhere}, Lemmas \ref{x}, \ref{y} and \ref{w} (see \ref{gone}).
\end{proof}
\begin{rem*}Unnumbered.\end{rem*}"""
    declarations = r"\newtheorem{lem}{Lemma}[section]\newtheorem*{rem*}{Remark}"
    assert text_of(source, preamble=declarations) == (
        "## 1 S\n\nLemma 1.1 (Zorn). Every chain.\n\nProof of Lemma 1.1. By choice, see Chapter, Lemmas.\n\n"
        "Remark. Unnumbered."
    )


@pytest.mark.parametrize(
    ("definition", "call", "expanded"),
    [
        (r"\newcommand{\R}{\mathbb{R}}", r"\R^n", r"\mathbb{R}^n"),
        (r"\newcommand\norm[1]{\|#1\|}", r"\norm{x+\norm{y}}", r"\|x+\|y\|\|"),
        (r"\newcommand*{\f}[2][p]{#1_{#2}}", r"\f{a}, \f[q]{b}", "p_{a}, q_{b}"),
        (r"\def\pair#1#2{(#1,#2)}", r"\pair ab", "(a,b)"),
        (r"\let\eps=\varepsilon", r"\eps x", r"\varepsilon x"),
        (r"\DeclareMathOperator{\Spec}{Spec}\DeclareMathOperator*{\colim}{colim}", r"\Spec A, \colim",
         r"\operatorname{Spec} A, \operatorname*{colim}"),
        (r"\newcommand{\bb}[1]{\mathbf#1}", r"\bb{x}y", r"\mathbf{x}y"),
        (r"\newcommand{\bull}[1]{#1\cdot}", r"\bull{a}b", r"a\cdot b"),
        (r"\newcommand{\a}{\b}\newcommand{\b}{\c}\renewcommand{\b}{end}", r"\a", "end"),
        (r"\def\loop{\loop x}\newcommand{\q}{\csname x\endcsname}", r"\loop \q", r"\loop \q"),
        (r"\newcommand{\emph}[1]{wrong}", r"\emph{a}", r"\emph{a}"),
    ],
)  # fmt: skip
def test_macros(definition: str, call: str, expanded: str) -> None:
    rest, macros, _ = collect_macros(definition + call, frozenset({"emph"}))
    assert Expander(macros).expand(rest) == expanded


def test_environments_that_swallow_their_content() -> None:
    preamble = r"\newenvironment{slogan}{\comment}{\endcomment}"
    assert text_of(r"a\begin{slogan}x\end{slogan} b", preamble=preamble) == "a b"


def test_files_that_a_document_inputs() -> None:
    files = {
        "preamble.tex": r"\documentclass{amsart}\title{The \emph{Title}}\newcommand{\N}{\mathbb{N}}",
        "sections/intro.tex": "Intro with $\\N$. \\input{sections/more} % \\input{no}",
        "sections/more.tex": r"More. \input{sections/intro}",
        "part.tex": r"\documentclass[main]{subfiles}\begin{document}A part.\end{document}",
    }
    source = r"\input preamble \begin{document}\input{sections/intro}\include{missing}\subfile{part}\end{document}tail"
    assert (
        text_of("\\documentclass{x}" + source, files) == r"# The Title" + "\n\nIntro with $\\mathbb{N}$. More. A part."
    )


def test_a_part_is_read_where_it_is_input() -> None:
    for source in ("Just words.", r"\documentclass{subfiles}\begin{document}x\end{document}"):
        with pytest.raises(BadInput, match="no whole LaTeX document"):
            list(latex.read(io.BytesIO(source.encode()), "part.tex", lambda path: None))
    assert text_of("Just words.", parts=True) == "Just words."


@pytest.mark.parametrize(
    "bomb",
    [
        r"\def\a{\b\b}\def\b{\c\c}\def\c{\d\d}\def\d{\e\e}\def\e{\f\f}\def\f{\g\g}\def\g{\h\h}\def\h{\a\a}\a",
        r"\newcommand{\x}[1]{#1#1#1#1#1#1#1#1}" + r"\x{" * 12 + "words" + "}" * 12,
    ],
)
def test_macro_bombs_are_refused(bomb: str) -> None:
    with pytest.raises(BadInput, match="expand to more"):
        text_of(bomb)


def test_files_that_input_themselves_end() -> None:
    (document,) = latex.read(
        io.BytesIO(rb"\begin{document}x \input{a}\input{a}\end{document}"), "m", lambda path: rb"y \input{a}\input{b}"
    )
    assert len(document.text) < 20_000
