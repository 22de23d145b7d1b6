"""Programming languages by file name, first line and modeline.

The names are in lower case without spaces, so that a document's flags can carry them: `code-python`, `code-c++`.
Endings that several languages share are settled by content; everything here is plain data.
"""

from __future__ import annotations

import re

# language: endings, without the dot.
_ENDINGS = {
    "ada": "adb ads", "agda": "agda", "apl": "apl dyalog", "applescript": "applescript", "assembly": "s asm nasm",
    "awk": "awk", "basic": "bas vb vbs", "batch": "bat cmd", "bison": "y yy yacc", "c": "c", "c#": "cs csx",
    "c++": "cc cpp cxx c++ hh hpp hxx h++ inl ipp tcc tpp ino", "clojure": "clj cljs cljc edn", "cmake": "cmake",
    "cobol": "cob cbl cpy", "coffeescript": "coffee", "common-lisp": "lisp lsp asd cl", "coq": "v", "crystal": "cr",
    "css": "css scss sass less", "cuda": "cu cuh", "cython": "pyx pxd pxi", "d": "d di", "dart": "dart",
    "dockerfile": "dockerfile", "elixir": "ex exs", "elm": "elm", "emacs-lisp": "el", "erlang": "erl hrl",
    "f#": "fs fsi fsx", "flex": "l lex", "fortran": "f f77 f90 f95 f03 f08 for ftn", "gettext": "po pot",
    "glsl": "glsl vert frag geom comp", "go": "go", "graphql": "graphql gql", "groovy": "groovy gradle",
    "haskell": "hs lhs", "hcl": "hcl tf tfvars", "idris": "idr", "ini": "ini cfg conf desktop service",
    "java": "java", "javascript": "js mjs cjs jsx", "json": "json geojson json5", "julia": "jl", "kotlin": "kt kts",
    "lean": "lean", "lua": "lua", "m4": "m4 ac", "makefile": "mk mak make am", "mathematica": "nb wl wls",
    "matlab": "m", "meson": "meson", "nim": "nim nims", "nix": "nix", "objective-c": "mm", "ocaml": "ml mli mll mly",
    "opencl": "opencl", "pascal": "pas pp dpr lpr", "perl": "pl pm t pod", "php": "php php3 php4 php5 phtml",
    "powershell": "ps1 psm1 psd1", "prolog": "pro plt", "protobuf": "proto", "puppet": "epp", "purescript": "purs",
    "python": "py pyi pyw gyp gypi", "r": "r rmd", "racket": "rkt", "raku": "raku rakumod pm6 p6", "reason": "re rei",
    "ruby": "rb rake gemspec podspec erb", "rust": "rs", "scala": "scala sc sbt", "scheme": "scm ss sld",
    "shell": "sh bash zsh ksh fish bats", "smalltalk": "st", "solidity": "sol", "sql": "sql ddl plsql",
    "standard-ml": "sml sig", "stata": "do ado", "svelte": "svelte", "swift": "swift", "systemverilog": "sv svh",
    "tcl": "tcl tk", "thrift": "thrift", "toml": "toml", "typescript": "ts tsx mts cts", "vala": "vala vapi",
    "verilog": "vh", "vhdl": "vhd vhdl", "vim-script": "vim", "vue": "vue", "webassembly": "wat wast",
    "xml": "xml xsd xsl xslt svg wsdl", "yaml": "yaml yml", "zig": "zig",
}  # fmt: skip
_BY_ENDING = {ending: language for language, endings in _ENDINGS.items() for ending in endings.split()}
_BY_NAME = {
    ".bashrc": "shell", ".profile": "shell",
    ".vimrc": "vim-script", "brewfile": "ruby", "build": "starlark", "build.bazel": "starlark",
    "cmakelists.txt": "cmake", "configure.ac": "m4", "configure.in": "m4", "containerfile": "dockerfile",
    "dockerfile": "dockerfile", "dune": "ocaml", "gemfile": "ruby", "gnumakefile": "makefile",
    "jenkinsfile": "groovy", "kbuild": "makefile", "kconfig": "kconfig", "makefile": "makefile",
    "meson.build": "meson", "pkgbuild": "shell", "rakefile": "ruby", "sconscript": "python", "sconstruct": "python",
    "vagrantfile": "ruby", "workspace": "starlark",
}  # fmt: skip
_BY_NAME_START = (("makefile.", "makefile"), ("dockerfile.", "dockerfile"), ("kconfig.", "kconfig"))
_BY_INTERPRETER = {
    "ash": "shell", "awk": "awk",
    "bash": "shell", "bun": "javascript", "crystal": "crystal", "dash": "shell", "deno": "typescript",
    "elixir": "elixir", "escript": "erlang", "fish": "shell", "gawk": "awk", "gjs": "javascript", "groovy": "groovy",
    "guile": "scheme", "julia": "julia", "ksh": "shell", "lua": "lua", "luajit": "lua", "make": "makefile",
    "mawk": "awk", "node": "javascript", "nodejs": "javascript", "ocaml": "ocaml", "perl": "perl", "php": "php",
    "pwsh": "powershell", "pypy": "python", "python": "python", "racket": "racket", "raku": "raku", "rscript": "r",
    "ruby": "ruby", "runghc": "haskell", "runhaskell": "haskell", "sbcl": "common-lisp", "scala": "scala",
    "sh": "shell", "swift": "swift", "swipl": "prolog", "tclsh": "tcl", "wish": "tcl", "zsh": "shell",
}  # fmt: skip
# Names that editors' modelines use where they differ from ours.
_MODES = {
    "autoconf": "m4", "bash": "shell", "cc": "c++", "cpp": "c++", "cperl": "perl", "cs": "c#", "elisp": "emacs-lisp",
    "js": "javascript", "lisp": "common-lisp", "make": "makefile", "objc": "objective-c", "sh": "shell",
    "shell-script": "shell", "vim": "vim-script", "zsh": "shell",
}  # fmt: skip
_KNOWN = {*_ENDINGS, *_BY_NAME.values()}

_ENV = re.compile(rb"^#!\s*(?:\S*/)?env\s+(?:-\S+\s+|\w+=\S+\s+)*(\S+)")
_SHEBANG = re.compile(rb"^#!\s*(\S+)")
_EMACS = re.compile(rb"-\*-\s*(?:[^\n]*?mode:\s*)?([\w+#-]+)\s*(?:;[^\n]*)?-\*-", re.IGNORECASE)
_VIM = re.compile(rb"\bvim?:[^\n]*?\b(?:ft|filetype|syntax)=([\w+#-]+)")
_HEAD = 1024


def code_language(name: str, head: bytes) -> str | None:
    """The programming language of a file by its name, then by its first line or modeline; None where neither says.

    `head` is the beginning of the file (a few KB); it also settles endings that languages share, such as `.h`."""
    base = name.replace("\\", "/").rpartition("/")[2].lower()
    if base.endswith(".in") and base.count(".") > 1:  # a template of the file that it is named after
        base = base[:-3]
    if base in _BY_NAME:
        return _BY_NAME[base]
    for start, language in _BY_NAME_START:
        if base.startswith(start):
            return language
    _, dot, ending = base.rpartition(".")
    if dot and ending:
        shared = _SHARED.get(ending)
        if shared is not None:
            return shared(head)
        if ending in _BY_ENDING:
            return _BY_ENDING[ending]
        return None if ending.isdigit() else _by_content(head)
    return _by_content(head)


def _by_content(head: bytes) -> str | None:
    if match := _ENV.match(head) or _SHEBANG.match(head):
        program = match.group(1).rpartition(b"/")[2].decode("ascii", "replace").lower()
        return _BY_INTERPRETER.get(re.sub(r"[\d.]+$", "", program))
    if head.startswith(b"<?php"):
        return "php"
    for pattern in (_EMACS, _VIM):
        if match := pattern.search(head[:_HEAD]):
            mode = match.group(1).decode("ascii", "replace").lower().removesuffix("-mode")
            mode = _MODES.get(mode, mode)
            return mode if mode in _KNOWN else None
    return None


def _c_header(head: bytes) -> str:
    if re.search(rb"^\s*@(?:interface|protocol|class|property)\b|^#import\b", head, re.MULTILINE):
        return "objective-c"
    pattern = rb"^\s*(?:template\s*<|namespace\b|class\s+\w+[^;()]*$|using\s+\w|public:|private:|protected:)|\bstd::"
    return "c++" if re.search(pattern + rb"|^#\s*include\s*<\w+>", head, re.MULTILINE) else "c"


def _dot_m(head: bytes) -> str:
    if re.search(rb"^\s*(?:#import|#include|@interface|@implementation|@protocol)\b|^\s*//|^/\*", head, re.MULTILINE):
        return "objective-c"
    return "mercury" if re.search(rb"^:- module\b", head, re.MULTILINE) else "matlab"


def _dot_v(head: bytes) -> str:
    verilog = re.search(rb"^\s*(?:module\s+\w+\s*[(#;]|`timescale|`include|endmodule)", head, re.MULTILINE)
    return "verilog" if verilog else "coq"


def _dot_pl(head: bytes) -> str:
    prolog = re.search(rb"^:-\s*\w|^\w+\(.*\)\s*:-", head, re.MULTILINE)
    return "prolog" if prolog and not re.search(rb"\buse strict\b|^#!.*perl|[$@]\w", head, re.MULTILINE) else "perl"


def _dot_ts(head: bytes) -> str | None:
    """Qt's translation files have the ending of TypeScript."""
    return "xml" if head.lstrip().startswith(b"<?xml") else "typescript"


def _dot_t(head: bytes) -> str | None:
    return _by_content(head) or ("perl" if re.search(rb"^\s*use \w", head, re.MULTILINE) else None)


def _dot_cl(head: bytes) -> str:
    return "opencl" if re.search(rb"__kernel|__global|\bkernel\s+void\b", head) else "common-lisp"


def _dot_pp(head: bytes) -> str:
    return "puppet" if re.search(rb"^\s*(?:class|define|node)\s+[\w:']+.*\{", head, re.MULTILINE) else "pascal"


_SHARED = {
    "cl": _dot_cl,
    "h": _c_header,
    "m": _dot_m,
    "pl": _dot_pl,
    "pp": _dot_pp,
    "t": _dot_t,
    "ts": _dot_ts,
    "v": _dot_v,
}
