"""Cleans captions and filters them by rules, each with a reason that is counted."""

import html
import json
import re
import unicodedata
from collections import Counter

from data.uvrd.settings import Text
from gve_jax.streams.rows import Reject

_LINK = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+")
_TAG = re.compile(r"<[^<>]{0,200}>")
_HASH = re.compile(r"(?:^|\s)[#@]\w+")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NAMELESS = re.compile(
    r"(?:(?:img|dsc|mov|vid|pxl|mvi|gopr|clip|video|untitled|unnamed|file|recording|stock|footage|"
    r"screen|test|copy|final|new|my|hd|4k|\d+|mp4|avi|mkv|webm)[\W_\d]*)+",
    re.IGNORECASE,
)
_SPAM = re.compile(
    r"\b(?:subscribe|click (?:here|the link)|link in (?:the )?(?:bio|description)|(?:buy|order|"
    r"call) now|free (?:shipping|download|trial)|promo code|discount code|follow (?:me|us)|"
    r"giveaway|casino|limited offer|100% free|whatsapp)\b",
    re.IGNORECASE,
)
# Instructions to a model, or special tokens of its chat template.
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instruction|prompt|rule|above|previous|"
    r"everything)|<\|[^|]{0,40}\|>|\[/?INST\]|<<SYS>>|^\s*(?:system|assistant|user)\s*:|"
    r"\bsystem prompt\b|\b(?:you are|act as|pretend to be) (?:now )?an? "
    r"(?:\w+ )?(?:assistant|ai|model|chatbot)|"
    r"\b(?:respond|reply)\b.{0,30}\b(?:only|with|json|exactly)\b|"
    r"\b(?:answer|output|print|return|say|write)\b.{0,30}\b(?:json|exactly|verbatim|the (?:word|"
    r"following|text))\b|"
    r"\bas an ai\b|\bnew instructions?\b",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'|’| a)m sorry|i (?:cannot|can(?:'|’)t|am unable|am not able)|unable to "
    r"(?:assist|help|comply)|as an ai|against my (?:guidelines|policy))\b",
    re.IGNORECASE,
)
_ENGLISH = frozenset(
    "a an the of in on at to and or is are was were with from by for it its this that there then "
    "while into over as not he she they his her their who which up down out off after before be "
    "has have".split()
)
# Function words of other common languages in Latin script that are not English words.
_OTHERS = frozenset(
    "der das und ist ein eine einen mit auf im den dem nicht zu von sich wird auch über für "
    "le la les des et un une est dans avec sur pour qui aux pas elle "
    "el los las una para del que su al más está di che è gli della nel sono "
    "os um uma da em com não na são het een op voor niet zijn naar "
    "och att det som på av för är".split()
)


def rectify(text: str) -> str:
    """Removes entities, markup, links, hashtags and control characters, collapses spaces; NFC."""
    text = html.unescape(text)
    text = _HASH.sub(" ", _LINK.sub(" ", _TAG.sub(" ", text)))
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():  # control characters and other white space
        text = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in text)
    return " ".join(text.split())


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def accept(raw: object, rules: Text) -> str:
    """Returns the cleaned caption; "" only if none is required.

    Raises:
      Reject: not text, too long, an instruction to the model, empty, not a description, spam,
        another language; checked in this order.
    """
    if raw is None:
        raw = ""
    if not isinstance(raw, str):
        raise Reject("caption is not text", type(raw).__name__)
    if len(raw) > rules.most_characters:
        raise Reject("caption too long", f"{len(raw)} characters")
    # Before markup is removed: special tokens look like markup.
    if _INSTRUCTION.search(raw):
        raise Reject("caption instructs the model", raw[:80])
    text = rectify(raw)
    if not text:
        if rules.require:
            raise Reject("caption empty", raw[:80])
        return ""
    if len(words(text)) > rules.most_words:
        raise Reject("caption too long", f"{len(words(text))} words")
    if _NAMELESS.fullmatch(text) or (len(words(text)) < rules.least_words):
        raise Reject("caption not descriptive", text[:80])
    if why := spam(text, rules, links=len(_LINK.findall(raw)), tags=len(_HASH.findall(raw))):
        raise Reject("caption is spam", why)
    if rules.language == "en" and not is_english(text):
        raise Reject("caption in another language", text[:80])
    return text


def spam(text: str, rules: Text, links: int = 0, tags: int = 0) -> str:
    """Returns why a text is spam; "" if it is not."""
    lower = [word.lower() for word in words(text)]
    if match := _SPAM.search(text):
        return match[0]
    if links > 2 or tags > 5:
        return f"{links} links, {tags} tags"
    if len(lower) >= 8:
        word, count = Counter(lower).most_common(1)[0]
        if count > rules.most_repeated * len(lower):
            return f"{word!r} {count} times of {len(lower)}"
    letters = sum(map(str.isalpha, text)) + sum(map(str.isspace, text))
    if letters < rules.least_letters * len(text):
        return f"{letters} letters of {len(text)} characters"
    return ""


def is_english(text: str) -> bool:
    """Whether a text is in Latin script and has at least as many function words of English as of
    other languages; short lists of nouns pass."""
    if not text.isascii():
        letters = [c for c in text if c.isalpha()]
        latin = sum("LATIN" in unicodedata.name(c, "") for c in letters)
        if latin < 0.9 * len(letters):
            return False
    lower = [word.lower() for word in words(text)]
    other = sum(word in _OTHERS for word in lower)
    return other <= sum(word in _ENGLISH for word in lower) or other < 2


def is_refusal(text: str) -> bool:
    return _REFUSAL.search(text[:300]) is not None


def is_instruction(text: str) -> bool:
    return _INSTRUCTION.search(text) is not None


def quote(text: str) -> str:
    """Text of a dataset as an ASCII JSON string: it cannot end its quotation and holds no special
    token of a chat template."""
    return json.dumps(text, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e")
