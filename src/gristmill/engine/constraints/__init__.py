"""Structured output: a reply that is a JSON value of a schema, or a text of a regex, a grammar or a list of choices.

A `Compiler` makes a `Constraint` of what a request asks for; each of its replies is followed by a `Matcher`, which says
before every token which ones may come. The automata are llguidance's (package extra `structured`); what they see of a
vocabulary, what they are asked and what is said about a mistake stands here.
"""

from .compiler import Compiler, compile_constraint
from .matcher import Constraint, Matcher

__all__ = ["Compiler", "Constraint", "Matcher", "compile_constraint"]
