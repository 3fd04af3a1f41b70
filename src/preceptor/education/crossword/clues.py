"""Clues from a text: sentences with a word left out, or what a language model makes of it. Italian and English."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field, RootModel

from preceptor.education.crossword.answers import MAX_WORDS, MIN_LETTERS, STEM, Clue, fold, normalize, why_not, words_of
from preceptor.teachers.chat import Chat, Settings

Lang = Literal["it", "en"]
BLANK = "____"
PASSAGE = 1500  # characters of a text that go into one prompt
SUPPORT = 0.3  # share of a clue's longer words whose stem must be in the passage; ours
HANDY = 7  # letters of words that cross well; between equal keywords the nearest
DRAWN = Settings(temperature=0.7, top_p=0.9, max_tokens=700, seed=0)  # the card: temperature .7 to 1, top-p .9

_END = re.compile(r"[.!?…][\"”»’')\]]*(\s+)(?=[\"“«‘(\[]*[A-ZÀ-Þ0-9])|(\n\s*\n)")
_ABBREVIATED = re.compile(
    r"(?:\b[A-ZÀ-Þ]|\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|ecc|Sig|Sigg|Dott|Prof|pag|cfr|art|ca|e\.g|i\.e|a\.C|d\.C))\.$", re.IGNORECASE
)
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_COMMON = {
    "it": (
        "alla alle allo agli altra altre altri altro anche ancora avere aveva avevano bene che chi come con cosa così cui dagli "
        "dal dalla dalle dallo dai degli del dell della delle dello dentro deve devono dopo dove due ecco era erano essere essi "
        "fare fatto fino fra già gli hanno infatti invece loro lui lungo mai mentre meno molta molte molti molto nei negli nel "
        "nell nella nelle nello non nostra nostro ogni oltre oppure per perché però più poco poi prima può possono proprio qua "
        "quale quali quando quanto quasi quella quelle quelli quello questa queste questi questo qui sarà sempre senza sia siano "
        "solo sono sopra sotto spesso stata state stati stato sua sue sui sul sull sulla sulle sullo suo suoi tra troppo tutta "
        "tutte tutti tutto una uno verso viene vengono volta volte detto detta durante chiama chiamata chiamato chiamati"
    ),
    "en": (
        "about above after again all also although always among and another any are around because been before being below "
        "between both but called can cannot could did does done down during each either even every few for found from had has "
        "have having her here him his how however into its itself just less like made make makes many may might more most much "
        "must near never not now off often one only onto other others our out over own same she should since some such than that "
        "the their them then there these they this those through thus too two under until upon use used uses very was way well "
        "were what when where which while who whose why will with within without would you your"
    ),
}
_STOP = {lang: frozenset(fold(text).split()) for lang, text in _COMMON.items()}
_NAMES = {"it": "Italian", "en": "English"}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Clues, and one line for every passage or answer from which there came none."""

    clues: tuple[Clue, ...]
    failed: tuple[str, ...] = ()


class Pair(BaseModel):
    """An answer and its clue, as a model writes them."""

    answer: str = Field(min_length=1)
    clue: str = Field(min_length=1)


class Pairs(RootModel[list[Pair]]):
    """What a passage gives."""


class Texts(RootModel[list[str]]):
    """Clues of one answer."""


def sentences(text: str) -> list[str]:
    """The sentences of a text; it is not cut after an initial or a common abbreviation."""
    parts: list[str] = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        part = " ".join(text[start:end].split())
        start = end
        if parts and _ABBREVIATED.search(parts[-1]):
            parts[-1] = f"{parts[-1]} {part}".strip()
        elif part:
            parts.append(part)
    return parts


def cloze_clues(text: str, *, lang: Lang, side: int, limit: int = 60) -> list[Clue]:
    """Keywords of a text by TF-IDF over its sentences, each with a sentence in which it is left out.

    A sentence serves one answer only, since the blanks of two would fill each other. Where a word of the sentence starts like the answer it
    is left out too, so no clue gives its answer away.

    Args:
        text: any length.
        lang: whose common words are no answers.
        side: letters of an answer at most.
        limit: clues at most.
    Returns:
        The most telling keywords first; their score is 1.
    """
    check_lang(lang)
    parts = sentences(text)
    tokens = [[token for token in _TOKEN.findall(part) if _may_be_answer(token, lang, side)] for part in parts]
    counts = Counter(normalize(token) for part in tokens for token in part)
    spread = Counter(word for part in tokens for word in {normalize(token) for token in part})
    weight = {word: count * math.log((1 + len(parts)) / spread[word]) for word, count in counts.items()}
    found: list[Clue] = []
    taken: set[int] = set()
    stems: set[str] = set()  # of one word in several forms the most telling serves
    for word in sorted(weight, key=lambda word: (-weight[word], abs(len(word) - HANDY), word)):
        if len(found) == limit:
            break
        if word[:STEM] in stems:
            continue
        for number in sorted(
            (i for i, part in enumerate(tokens) if i not in taken and word in map(normalize, part)),
            key=lambda i: abs(len(parts[i].split()) - 12),
        ):
            answer = next(token for token in tokens[number] if normalize(token) == word)
            clue = Clue(answer=answer, text=_blanked(parts[number], word), source=parts[number])
            if not why_not(clue, side=side):
                found.append(clue)
                taken.add(number)
                stems.add(word[:STEM])
                break
    return found


def extract_from_text(
    text: str, chat: Chat, *, lang: Lang, shots: Sequence[Clue] = (), per_passage: int = 8, settings: Settings = DRAWN
) -> Extraction:
    """Let a model find answers with clues in a text, passage by passage.

    Args:
        text: any length.
        chat: who is asked; JSON that does not fit is asked for three times, then the passage is left out.
        lang: of the text and the clues.
        shots: examples for the prompt, may be empty.
        per_passage: clues that are asked for.
        settings: how answers are drawn.
    Returns:
        The pairs whose answer stands in the passage and whose clue is about it, with the passage's sentence as source.
    """
    check_lang(lang)
    parts = list(passages(text))
    examples = "".join(f'\nExample: {{"answer": "{shot.answer}", "clue": "{shot.text}"}}' for shot in shots)
    prompts = [
        f"From the passage, choose up to {per_passage} single words that a student should remember, and write a crossword clue in "
        f"{_NAMES[lang]} for each. The word stands in the passage; the clue has 3 to 15 words, is true by the passage, and does not "
        f"contain the word or a word of the same stem. A JSON list of objects with answer and clue.{examples}\n\nPassage:\n{part}"
        for part in parts
    ]
    clues, failed = [], []
    for part, said in zip(parts, chat.structured(prompts, Pairs, settings), strict=True):
        if said.value is None:
            failed.append(f"passage {part[:40]!r}: {said.failed}")
            continue
        for pair in said.value.root:
            clue = _grounded(pair, part)
            if clue is not None:
                clues.append(clue)
    return Extraction(clues=tuple(clues), failed=tuple(failed))


def write_clues(answers: Sequence[str], chat: Chat, *, lang: Lang, n: int = 3, settings: Settings = DRAWN) -> Extraction:
    """Let a model write ``n`` clues for each answer; an answer for which it writes none is named."""
    check_lang(lang)
    if n < 1:
        raise ValueError(f"n: expected at least 1 clue, got {n}")
    prompts = [
        f"Write {n} different crossword clues in {_NAMES[lang]} for the answer {answer!r}, 3 to 15 words each. A clue does not contain the "
        "answer or a word of the same stem. A JSON list of texts."
        for answer in answers
    ]
    clues, failed = [], []
    for answer, said in zip(answers, chat.structured(prompts, Texts, settings), strict=True):
        texts = [" ".join(text.split()) for text in said.value.root] if said.value else []
        clues += [Clue(answer=answer, text=text) for text in texts if text]
        if not any(texts):
            failed.append(f"{answer}: {said.failed or 'no clue'}")
    return Extraction(clues=tuple(clues), failed=tuple(failed))


def passages(text: str) -> Iterator[str]:
    """A text in parts of whole sentences, up to `PASSAGE` characters each where a sentence is not longer."""
    part = ""
    for sentence in sentences(text):
        if part and len(part) + len(sentence) > PASSAGE:
            yield part
            part = ""
        part = f"{part} {sentence}".strip()
    if part:
        yield part


def check_lang(lang: str) -> None:
    """Refuse a language that is not known."""
    if lang not in _STOP:
        raise ValueError(f"lang: expected 'it' or 'en', got {lang!r}")


def _may_be_answer(token: str, lang: Lang, side: int) -> bool:
    try:
        letters = normalize(token)
    except ValueError:
        return False
    return max(MIN_LETTERS + 1, len(token)) <= len(letters) <= side and letters not in _STOP[lang]  # equal lengths: no apostrophe or hyphen


def _blanked(sentence: str, answer: str) -> str:
    """The sentence without the answer and the words that start like it, cut to the words around the first blank."""
    stem = answer[:STEM]
    words = []
    for word in sentence.split():
        tokens = re.findall(r"[^\W_]+", word)
        given = [token for token in tokens if fold(token).startswith(stem) or answer in fold(token)]
        words.append(re.sub("|".join(map(re.escape, given)), BLANK, word) if given else word)
    at = next((i for i, word in enumerate(words) if BLANK in word), 0)
    if len(words) <= MAX_WORDS:
        return " ".join(words)
    start = max(0, min(at - 12, len(words) - 24))
    cut = " ".join(words[start : start + 24]).strip(" ,;:")
    return f"{'…' if start else ''}{cut}{'…' if start + 24 < len(words) else ''}"


def _grounded(pair: Pair, passage: str) -> Clue | None:
    """The clue of a pair, if its answer stands in the passage and enough of its words do."""
    try:
        letters = normalize(pair.answer)
    except ValueError:
        return None
    source = next((part for part in sentences(passage) if _stands_in(letters, part)), "")
    stems = {word[:STEM] for word in words_of(passage)}
    telling = [word for word in words_of(pair.clue) if len(word) >= 4]
    supported = sum(word[:STEM] in stems for word in telling) / len(telling) if telling else 0.0
    if not source or supported < SUPPORT:
        return None
    return Clue(answer=" ".join(pair.answer.split()), text=" ".join(pair.clue.split()), source=source)


def _stands_in(letters: str, sentence: str) -> bool:
    """Whether a run of whole words spells the letters."""
    words = words_of(sentence)
    return any("".join(words[i:j]) == letters for i in range(len(words)) for j in range(i + 1, min(i + 6, len(words) + 1)))
