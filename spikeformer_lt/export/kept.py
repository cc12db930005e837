"""What is made of a layer's tensors for one library, kept until they change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Kept"]


class Kept:
    """Values by name, each made anew once a tensor that it was made of is another or was changed.

    Copies and pickles are empty: oneDNN's own memory cannot be copied. Of tensors made under
    ``inference_mode`` torch counts no changes; whoever changes one calls :meth:`clear`.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Any], Any, Any]] = {}

    def get(
        self, name: str, sources: Sequence[Tensor], make: Callable[[], Any], key: Hashable = None
    ) -> Any:
        """The value called `name`.

        Args:
            name: one value is kept for each.
            sources: the tensors that it is made of. Not an address: torch hands those out again.
            make: makes it.
            key: whatever else it depends on.
        """
        state = (key, *(None if x.is_inference() else x._version for x in sources))
        refs, before, value = self._known.get(name, ([], None, None))
        if before == state and all(ref() is x for ref, x in zip(refs, sources, strict=True)):
            return value
        value = make()
        self._known[name] = [weakref.ref(x) for x in sources], state, value
        return value

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
