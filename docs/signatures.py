"""What the pages' API part knows of a NamedTuple: its fields are how one is made."""

from __future__ import annotations

from typing import Any

import griffe


class NamedTuples(griffe.Extension):
    """Give each NamedTuple the __init__ that its fields make, as griffe does for a dataclass."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if "NamedTuple" not in map(str, cls.bases) or "__init__" in cls.members:
            return
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [
            griffe.Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
            for name, field in cls.attributes.items()
            if field.annotation and "property" not in field.labels
        ]
        itself = griffe.Parameter("self", kind=kind)
        made = griffe.Function("__init__", parameters=griffe.Parameters(itself, *fields))
        cls.set_member("__init__", made)
