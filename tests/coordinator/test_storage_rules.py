"""A job's storage as the text of a JSON object, whatever a script keeps in it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from coordinator.store import changes as rules
from node.scripts.outputs import apply

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.none() | st.integers() | TEXT | st.booleans()


@given(st.dictionaries(TEXT, VALUES), st.dictionaries(TEXT, VALUES))
def test_storage_is_the_text_of_the_object_that_updates_make(before: dict[str, object], updates: dict[str, object]) -> None:
    def as_text(values: dict[str, object]) -> dict[str, str | None]:
        return {key: None if value is None else json.dumps(value) for key, value in values.items()}

    kept = rules.stored(rules.stored({}, as_text(before)), as_text(updates))
    expected = {key: value for key, value in {**before, **updates}.items() if value is not None}
    assert json.loads(rules.storage_text(kept) or "{}") == expected


@given(st.dictionaries(TEXT, VALUES), st.dictionaries(TEXT, VALUES))
def test_the_store_keeps_what_keepers_would(before: dict[str, object], updates: dict[str, object]) -> None:
    def as_text(values: dict[str, object]) -> dict[str, str | None]:
        return {key: None if value is None else json.dumps(value) for key, value in values.items()}

    kept = rules.storage_text(rules.stored(rules.stored({}, as_text(before)), as_text(updates)))
    assert kept == apply(apply("", before), updates)  # type: ignore[arg-type]
