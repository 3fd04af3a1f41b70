"""Talking to a language model: see `preceptor.teachers.chat.client`."""

from preceptor.teachers.chat.client import Chat, open_chat
from preceptor.teachers.chat.endpoint import Endpoint
from preceptor.teachers.chat.shapes import Choice, Structured
from preceptor.teachers.chat.types import Answer, Backend, Budget, ChatStopped, Fault, Prices, Prompt, Question, Said, Settings, Spent

__all__ = [
    "Answer", "Backend", "Budget", "Chat", "ChatStopped", "Choice", "Endpoint", "Fault", "Prices", "Prompt", "Question", "Said", "Settings",
    "Spent", "Structured", "open_chat",
]  # fmt: skip
