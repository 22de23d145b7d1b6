"""Chats as text: templates (`template`), run in a sandbox (`sandbox`) on plain values (`messages`), whose special
tokens no message can forge (`guard`)."""

from .guard import Piece
from .messages import Message, Tool
from .template import ChatTemplate, Rendering

__all__ = ["ChatTemplate", "Message", "Piece", "Rendering", "Tool"]
