"""Bytes to models and back. cattrs is the registry of hooks, msgspec reads the JSON."""

from __future__ import annotations

from cattrs import Converter

from ..models import Meta, PartnerAccessResponse
from . import careful
from .envelope import envelope_of, read_envelope
from .parse import parse

__all__ = ["Codec", "envelope_of", "read_envelope"]

_NO_META = Meta()


class Codec:
    """Decodes answers.

    Attributes:
        converter: the cattrs converter that the classes' hooks live on. A hook registered for one of our classes,
            before the first answer is decoded, changes what `decode` returns.
    """

    def __init__(self, converter: Converter | None = None) -> None:
        self.converter = Converter() if converter is None else converter
        careful.register(self.converter)

    def decode(self, body: bytes, meta: Meta = _NO_META) -> PartnerAccessResponse:
        """The answer in a body.

        Raises:
            EmptyBodyError: there is nothing, or only `null`.
            NotJSONError: it is not JSON.
            WrongTypeError: it is JSON of another shape; its `path` names the place.
        """
        data = parse(body)
        try:
            answer: PartnerAccessResponse = careful.reader(self.converter, PartnerAccessResponse)(data)
            return _with_meta(answer, meta)
        except careful.Misfit as error:
            failure = error.final()
        del body, data
        raise failure


def _with_meta(answer: PartnerAccessResponse, meta: Meta) -> PartnerAccessResponse:
    # A hook of a user may have put something else in the place of the answer; that has no `meta`.
    return answer.with_meta(meta) if isinstance(answer, PartnerAccessResponse) else answer
