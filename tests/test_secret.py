"""Secrets show themselves only when they are revealed, and what may repeat one is masked."""

from __future__ import annotations

import base64
import copy
import html
import inspect
import pickle
import time
import traceback
from collections.abc import Callable
from enum import Enum
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flinks_async import Secret, fingerprint
from flinks_async.secret import redact, repeats

from .support import examples

CANARY = "canary-5f3e"


def test_a_secret_shows_itself_only_when_revealed() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>50}", repr({"a": [secret]})):
        assert CANARY not in shown
    assert not hasattr(secret, "__dict__")


def test_a_secret_refuses_to_be_pickled_and_is_its_own_copy() -> None:
    secret = Secret(CANARY)
    with pytest.raises(TypeError, match="refuses to be pickled"):
        pickle.dumps(secret)
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"a": secret})["a"] is secret


def test_secrets_are_equal_by_value_and_can_be_keys() -> None:
    assert Secret(CANARY) == Secret(Secret(CANARY))
    assert Secret(CANARY) != Secret("other")
    assert Secret(CANARY) != CANARY
    assert {Secret(CANARY): 1}[Secret(CANARY)] == 1


@pytest.mark.parametrize("value", [None, b"bytes", 5])
def test_only_text_can_be_a_secret(value: object) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        Secret(value)


def test_of_a_subclass_of_str_the_text_alone_is_kept() -> None:
    class Text(str):
        def encode(self, *_: object) -> bytes:
            return b"another"

    class Named(str, Enum):  # noqa: UP042 - a StrEnum writes itself as its value
        ONE = CANARY

    for text in (Text(CANARY), Named.ONE):
        assert type(Secret(text).reveal()) is str
        assert f"{Secret(text).reveal()}" == CANARY
        assert fingerprint(text) == fingerprint(CANARY)


@pytest.mark.parametrize("make", [Secret, fingerprint])
@pytest.mark.parametrize("value", [CANARY.encode(), [CANARY]])
def test_a_secret_that_is_no_text_is_in_no_frame_of_ours(make: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a str, not {type(value).__name__}") as caught:
        make(value)
    (_, *ours) = traceback.walk_tb(caught.tb)
    assert ours
    for frame, _line in ours:
        assert CANARY not in repr(frame.f_locals)
        assert not {bytes, type(None)} & {type(local) for local in frame.f_locals.values()}  # nor the process's key


def test_the_signature_of_fingerprint_does_not_show_the_key() -> None:
    assert inspect.signature(fingerprint).parameters["key"].default is None


def test_a_fingerprint_is_stable_within_a_key_and_differs_between_keys() -> None:
    secret = Secret(CANARY)
    assert fingerprint(secret) == fingerprint(Secret(CANARY)) == fingerprint(CANARY)
    assert fingerprint(secret, key=b"one") != fingerprint(secret, key=b"two")
    assert len(fingerprint(secret)) == 16


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("token canary-5f3e is dead", "token *** is dead"),
        ("CANARY-5F3E", "***"),
        ("see https://x.example/partneraccess/abc?d=e now", "see *** now"),
        ("ask jane.doe@example.com", "ask ***"),
        ("account 7641238", "account ***"),
        ("code 404", "code 404"),
        ("id 5e115eac-1209-4f19-641c-08d6d484e2fe", "id ***"),
        ("line\r\nbreak\x00", "line break "),
        ("call 514-555-1234 now", "call *** now"),
        ("call (514) 555-1234 now", "call *** now"),
        ("call +1 514.555.1234 now", "call *** now"),
        ("card 4539 1488 0343 6467 of", "card *** of"),
        ("SIN 046 454 286 of", "SIN *** of"),
        ("account 9876-5432-1012 of", "account *** of"),
        ("account 9876\u20115432\u00a01012 of", "account *** of"),
        ("account \uff17\uff16\uff14\uff11\uff12\uff13\uff18 of", "account *** of"),
        ("account 98\u200b765 of", "account *** of"),
        ("12345-003", "***"),
        ("balance 1,234,567.89", "balance ***"),
        ("IBAN DE89 3704 0044 0532 0130 00 of", "IBAN *** of"),
        ("IBAN GB29NWBK60161331926819 of", "IBAN *** of"),
        ("IBAN gb29 nwbk 6016 1331 9268 19, of", "IBAN ***, of"),
        ("ask jane.doe%40example.com now", "ask *** now"),
        ("ask jane.doe%2540example.com now", "ask *** now"),
        ("ask jane.doe&#64;example.com now", "ask *** now"),
        ("ask jane.doe&amp;#x40;example.com now", "ask *** now"),
        ("ask jane.doe\uff20example.com now", "ask *** now"),
        ("ask jane.doe @ example.com now", "ask *** now"),
        ("ask jane.doe (at) example.com now", "ask *** now"),
        ("account 76%34%31238", "account ***"),
        ("token canary- 5f3e is dead", "***"),
        ("token c a n a r y - 5 f 3 e", "***"),
        ("token canary\u200b-5f\u20603e is dead", "token *** is dead"),
        ("token cana\nry-5f\t3e", "***"),
        ("line%0d%0abreak", "line break"),
        ("error 12 of 2024, see the docs, at 10:15", "error 12 of 2024, see the docs, at 10:15"),
        ("in 24 hours at 7 am, 100 % of 1.5 s", "in 24 hours at 7 am, 100 % of 1.5 s"),
    ],
)
def test_redaction_hides_what_may_be_a_secret_or_personal(text: str, shown: str) -> None:
    assert redact(text, Secret(CANARY)) == shown


@pytest.mark.parametrize("part", ["a", "a.", "a+-", "a:", "a:/", "1-", "x@", "a-b.c+"])
def test_redacting_a_hostile_text_takes_no_longer_than_another(part: str) -> None:
    started = time.process_time()
    for _ in range(10):
        redact(part * (3000 // len(part)))
    assert time.process_time() - started < 0.1  # with a search from each letter on it were 0.2 to 0.4


def test_a_short_hidden_value_leaves_nothing_of_a_long_one() -> None:
    assert redact("is sk-live-canary", Secret("a"), None, Secret("sk-live-canary")) == "is ***"


def test_redacted_text_can_be_written_down() -> None:
    """A byte of a header that is no UTF-8 comes as half a surrogate pair."""
    shown = redact("one\udcff\ud800two\u00e9\U0001f600")
    assert shown == "one two\u00e9\U0001f600"
    assert shown.encode("utf-8").decode("utf-8") == shown


def test_redaction_also_finds_the_percent_encoded_form() -> None:
    assert redact("a%2Fb%3F", Secret("a/b?")) == "***"


def _often(coding: Callable[[str], str], times: int) -> Callable[[str], str]:
    return lambda text: text if times == 0 else _often(coding, times - 1)(coding(text))


CODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "other case": str.swapcase,
    "without hyphens": lambda text: text.replace("-", ""),
    "percent": lambda text: quote(text, safe=""),
    "percent, lower case": lambda text: quote(text, safe="").lower(),
    "form": quote_plus,
    "percent, three times": _often(lambda text: quote(text, safe=""), 3),
    "percent, all": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "HTML": html.escape,
    "HTML, numbers": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML, twice": _often(html.escape, 2),
    "JSON": lambda text: "".join(f"\\u{ord(char):04X}" for char in text),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hexadecimal": lambda text: text.encode().hex().upper(),
}


@pytest.mark.parametrize("value", ["3fa85f64-5717-4562-b3fc-2c963f66afa6", "tok/en & <1>=='é", "abcdefgh"])
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_what_repeats_a_hidden_value_in_a_coding_is_masked(coding: Callable[[str], str], value: str) -> None:
    told, hidden = coding(value), (None, Secret("another-value"), Secret(value))
    assert repeats(f"no: {told}, sorry", *hidden)
    assert told not in redact(f"no: {told}, sorry", *hidden)
    assert not repeats(f"no: {coding(value[1:])}", *hidden)
    assert not repeats(told, None, Secret("another-value"))


def test_a_short_hidden_value_or_one_of_hyphens_masks_only_itself() -> None:
    for value in ("retry", "-" * 20, "a" + "-" * 20):
        assert not repeats("RETRY_LATER: an a-b-c", Secret(value))
        assert redact(f"a {value} word", Secret(value)) == "a *** word"


@examples(100)
@given(st.text(max_size=600), st.text("abcdef-/%", min_size=4, max_size=12))
def test_redacted_text_is_short_and_never_holds_the_secret(text: str, secret: str) -> None:
    shown = redact(f"{text}{secret}{text}", Secret(secret))
    assert len(shown) <= 200
    assert secret not in shown


def test_a_secret_has_no_state_to_be_copied_from() -> None:
    with pytest.raises(TypeError, match="refuses to be pickled"):
        Secret(CANARY).__getstate__()
