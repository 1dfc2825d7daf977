"""Models that tests share, and the check that a test leaves them as it found them.

Nothing of the package is imported at the top: the pytest option that checks shapes must come first.
"""

from collections.abc import Callable, Iterable
from typing import Any


class SharedModels:
    """Models made once per session, each checked after every test that asked for it.

    A model that was changed is forgotten, so that one test is blamed and the next gets a new one.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, Any]] = {}
        self._asked_for: set[str] = set()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the model of a name, made where this is the first test that asks for it."""
        from slow_truth import state_of
        from tiny_models import warm_up

        self._asked_for.add(name)
        if name not in self._made:
            model = make()
            warm_up(model)
            self._made[name] = (model, state_of(model))
        return self._made[name][0]

    def check_used(self) -> None:
        """Fail if a model that was asked for since the last check is not as it was made."""
        used, self._asked_for = self._asked_for, set()
        self._check(used & self._made.keys(), "a test changed")

    def check_all(self) -> None:
        """Fail if any model is not as it was made, also one that a test held without asking."""
        self._check(self._made, "some test changed")

    def _check(self, names: Iterable[str], who: str) -> None:
        from slow_truth import changes, state_of

        found = {}
        for name in sorted(names):
            model, before = self._made[name]
            if changed := changes(state_of(model), before):
                del self._made[name]
                found[name] = changed
        complaints = [f"{name}: {', '.join(changed)}" for name, changed in found.items()]
        assert not found, f"{who} the shared model {'; '.join(complaints)}"
