"""What a service answered: a JSON document with every digit its numbers came with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from consensus.errors import Failed
from consensus.json_route import NoSuchRoute, Route, parse_route, select
from consensus.numbers import NotANumber, number
from node.infra.fetch import UNUSABLE
from node.infra.nesting import check_nesting


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` is JSON as Python has it, but for numbers, which are text. Of keys given twice the last counts."""

    document: Any

    def number(self, route: str) -> Decimal:
        """The number that the route leads to. Raises `Failed` (SOURCE_UNUSABLE), saying what is there instead."""
        try:
            return number(select(self.document, _route(route)))
        except (NoSuchRoute, NotANumber) as error:
            raise Failed(UNUSABLE, f"{route or 'the answer'}: {error}") from None


def parse_answer(body: bytes | str) -> Answer:
    """Raises `Failed` (SOURCE_UNUSABLE) for what is no JSON, or nested deeper than any service's answer."""
    try:
        check_nesting(body)
        text = body if isinstance(body, str) else body.decode("utf-8-sig")
        # NaN and Infinity, which are no JSON, are left to whoever selects them: much of the world writes them.
        return Answer(json.loads(text, parse_float=str, parse_int=str, parse_constant=str))
    except RecursionError:
        raise Failed(UNUSABLE, "an answer that is nested too deeply") from None
    except ValueError as error:
        raise Failed(UNUSABLE, f"an answer that is no JSON ({str(error)[:100]})") from None


@lru_cache(maxsize=4096)
def _route(text: str) -> Route:
    return parse_route(text)
